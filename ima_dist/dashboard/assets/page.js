// Saves figures, and keeps the whole selection in the address. Everything happens in the browser.
function here() {
  return window.location.pathname + window.location.search;
}

// Dash reads the address again on this event, as after one of its own links.
function told() {
  window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
}

window.imaDistGo = function (address) {
  if (here() !== address) {
    window.history.pushState(null, "", address);
    told();
  }
};

window.imaDistComplete = function ([from, address, title]) {
  // An answer that comes after the user has gone on must not bring the old address back.
  if (here() === from) {
    document.title = title + " – ima_dist";
    if (from !== address) {
      window.history.replaceState(null, "", address);
      told();
    }
  }
};

// Names every control by its label: some of Dash's own have no name for a screen reader.
new MutationObserver(function () {
  for (const control of document.querySelectorAll(".control")) {
    const name = control.querySelector(".label").textContent;
    for (const part of control.querySelectorAll("input:not([type=radio]), button, [role=slider]")) {
      if (!part.hasAttribute("aria-label") && !part.hasAttribute("aria-labelledby")) {
        part.setAttribute("aria-label", part.textContent ? name + " " + part.textContent : name);
      }
    }
  }
}).observe(document.documentElement, { childList: true, subtree: true });

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
