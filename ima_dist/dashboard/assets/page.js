// Saving figures, and the whole selection in the address. Everything happens in the browser.
window.imaDistAddress = function (address, title) {
  document.title = title + " – ima_dist";
  if (window.location.pathname + window.location.search !== address) {
    window.history.replaceState(window.history.state, "", address);
  }
};

document.addEventListener("click", function (event) {
  const button = event.target.closest("button.save");
  if (!button) {
    return;
  }
  const graph = document.querySelector("#" + CSS.escape(button.dataset.figure) + " .js-plotly-plot");
  const box = graph.getBoundingClientRect();
  window.Plotly.downloadImage(graph, {
    format: button.dataset.kind,
    filename: button.dataset.name,
    width: Math.round(box.width),
    height: Math.round(box.height),
    scale: button.dataset.kind === "png" ? 2 : 1,
  });
});

// Enter in a field must not send the form anywhere.
document.addEventListener("submit", function (event) {
  event.preventDefault();
});
