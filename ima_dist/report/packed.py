"""Figures in a page that loads nothing: Plotly and their data, packed, and unpacked by the browser.

plotly.js alone has five megabytes, of which packing leaves two in the page.
"""

import base64
import gzip
import json
from collections.abc import Sequence

import plotly.io
import plotly.offline
from markupsafe import Markup

from ima_dist.report.figures import Drawing

_CONFIG = {"displaylogo": False, "responsive": True, "toImageButtonOptions": {"format": "svg"}}
_SCRIPT = """
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
async function draw() {
  const script = document.createElement("script");
  script.textContent = await unpacked("packed-plotly");
  document.head.append(script);
  for (const [place, figure] of JSON.parse(await unpacked("packed-figures")).entries()) {
    await Plotly.newPlot("figure" + place, figure.data, figure.layout, CONFIG);
  }
}
draw().catch((error) => {
  document.querySelectorAll(".drawn:empty").forEach((place) => {
    place.textContent = "This figure needs a browser of 2023 or later (" + error + ").";
  });
});
"""


def place(drawing: Drawing, number: int) -> Markup:
    """Where a figure is drawn, as high as it will be."""
    return Markup('<div class="drawn" id="figure{}" style="min-height: {}px"></div>').format(
        number, int(drawing.figure.layout.height or 450)
    )


def scripts(drawings: Sequence[Drawing]) -> Markup:
    """What draws the figures; nothing for none."""
    if not drawings:
        return Markup("")
    figures = f"[{','.join(plotly.io.to_json(drawing.figure) for drawing in drawings)}]"
    packed = {"plotly": plotly.offline.get_plotlyjs(), "figures": figures}
    parts = [f'<script type="text/plain" id="packed-{name}">{_packed(text)}</script>' for name, text in packed.items()]
    code = _SCRIPT.replace("CONFIG", json.dumps(_CONFIG))
    return Markup("\n".join([*parts, f"<script>{code}</script>"]))  # safe: base64, and our own code


def _packed(text: str) -> str:
    # Without the time, so that equal runs give equal pages.
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
