// Saves figures, copies commands, and keeps the whole selection in the address. Everything happens in the browser.
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

// The link to the comparison of the rows that are chosen in a list.
window.imaDistCompare = function (chosen) {
  const names = (chosen || []).map((row) => row.run);
  const query = new URLSearchParams(names.map((name) => ["runs", name]));
  if (names.length < 2) {
    return [undefined, names.length ? "Choose another run to compare" : "Choose runs to compare", "true"];
  }
  return ["compare?" + query, `Compare ${names.length} runs`, "false"];
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

function save(button) {
  const graph = document.querySelector("#" + CSS.escape(button.dataset.figure) + " .js-plotly-plot");
  const box = graph.getBoundingClientRect();
  window.Plotly.downloadImage(graph, {
    format: button.dataset.kind,
    filename: button.dataset.name,
    width: Math.round(box.width),
    height: Math.round(box.height),
    scale: button.dataset.kind === "png" ? 2 : 1,
  });
}

// navigator.clipboard is there only over https and on this machine; a selected text can be copied anywhere.
function copy(button) {
  const range = document.createRange();
  range.selectNodeContents(button.parentElement.querySelector("code"));
  const selection = window.getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  const done = navigator.clipboard ? navigator.clipboard.writeText(button.dataset.text) : document.execCommand("copy");
  Promise.resolve(done).then(() => (button.textContent = "Copied"), () => (button.textContent = "Press Ctrl+C"));
}

document.addEventListener("click", function (event) {
  const button = event.target.closest("button.save[data-figure]");
  const copied = event.target.closest("button.copy");
  const link = event.target.closest("a.inside");
  if (button) {
    save(button);
  } else if (copied) {
    copy(copied);
  } else if (link && !(event.ctrlKey || event.metaKey || event.shiftKey || event.button)) {
    event.preventDefault();
    if (link.hasAttribute("href")) {
      const found = new URL(link.href);
      window.imaDistGo(found.pathname + found.search);
      window.scrollTo(0, 0);
    }
  }
});

// Enter in a field must not send the form anywhere.
document.addEventListener("submit", function (event) {
  event.preventDefault();
});
