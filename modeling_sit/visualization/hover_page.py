"""The maps as one self-contained HTML page: hovering over a point shows its image."""

import html
import json
from collections.abc import Sequence
from string import Template

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as OutlinePath

from modeling_sit.visualization.embeddings import FeatureMap
from modeling_sit.visualization.palette import Group

PANEL_SIDE = 600
PANEL_MARGIN = 16

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; color: #222; background: #fff; margin: 1.5rem; }
h1 { font-size: 1.2rem; margin: 0; }
p { margin: .2rem 0 1rem; color: #555; }
main { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
section { flex: 1 1 340px; max-width: $maps_width; display: grid; gap: 1.5rem;
 grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; max-width: 640px; display: flex; flex-direction: column; }
figcaption { font-weight: 600; min-height: 2.8em; flex: 1; }
figcaption small { display: block; font-weight: 400; color: #555; }
svg.map { width: 100%; border: 1px solid #ccc; touch-action: none; cursor: crosshair; }
.axes { color: #555; font-size: 12px; }
.result { min-height: 1.4em; }
svg path { stroke: #fff; stroke-width: .04; fill-opacity: .85; cursor: pointer; }
svg path.open { fill: none; stroke: #999; stroke-width: .12; }
svg path.faded { opacity: .07; }
svg path.found { stroke: #000; stroke-width: .16; fill-opacity: 1; opacity: 1; }
ul { list-style: none; margin: 0; padding: 0; columns: $columns; column-width: 9em; flex: 0 1 $legend_width; }
li button { all: unset; cursor: pointer; display: flex; gap: .4em; align-items: center; padding: .05em .3em; }
li button:focus-visible, li button[aria-pressed=true] { outline: 2px solid #0072B2; border-radius: 3px; }
li svg { width: 1em; height: 1em; flex: none; }
#image { position: fixed; display: none; pointer-events: none; background: #fff; border: 1px solid #888;
 border-radius: 4px; padding: 6px; box-shadow: 0 2px 10px #0004; max-width: 200px; overflow-wrap: anywhere; }
#image img { display: block; width: 160px; height: 160px; object-fit: contain; margin-bottom: 4px; }
#image img.small { image-rendering: pixelated; }
#image small { color: #555; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle Hover over a point for its image; the same image is marked in every map. Click a name to see its points
alone. Turn the wheel to zoom, drag to move, double-click for all.</p>
<main>
<section>
$panels
</section>
<ul aria-label="$legend_title"><li><strong>$legend_title</strong></li>
$legend
</ul>
</main>
<div id="image" role="status"><img alt=""><div></div><small></small></div>
<script type="application/json" id="points">$points</script>
<script>
"use strict";
const points = JSON.parse(document.getElementById("points").textContent);
const box = document.getElementById("image");
const maps = [...document.querySelectorAll("svg.map")];
const marks = points.map(() => []);
for (const map of maps) for (const mark of map.querySelectorAll("path")) marks[mark.dataset.i].push(mark);
let shown = null;
function hide() {
  if (shown !== null) for (const mark of marks[shown]) mark.classList.remove("found");
  shown = null;
  box.style.display = "none";
}
function show(index, event) {
  if (index !== shown) {
    hide();
    shown = index;
    for (const mark of marks[index]) { mark.classList.add("found"); mark.parentNode.append(mark); }
    const point = points[index], image = box.querySelector("img");
    image.src = point.image;
    image.className = point.image.startsWith("data:image/png") ? "small" : "";
    box.querySelector("div").textContent = point.group;
    box.querySelector("small").textContent = point.name;
    box.style.display = "block";
  }
  const right = event.clientX + 16 + box.offsetWidth > innerWidth;
  box.style.left = event.clientX + (right ? -16 - box.offsetWidth : 16) + "px";
  box.style.top = Math.max(4, Math.min(event.clientY - 40, innerHeight - box.offsetHeight - 8)) + "px";
}
for (const map of maps) {
  const whole = [0, 0, $side, $side];
  let view = [...whole], grip = null;
  const set = (next) => {
    view = next;
    map.setAttribute("viewBox", view.join(" "));
    // Zoomed in, the points draw apart and grow but little.
    const size = map.dataset.size * Math.sqrt(view[2] / whole[2]);
    for (const mark of map.children) mark.setAttribute("transform", mark.dataset.at + " scale(" + size + ")");
  };
  const place = (event) => {
    const frame = map.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  };
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [x, y] = place(event);
    const side = Math.min(whole[2], Math.max(whole[2] / 40, view[2] * 1.0015 ** event.deltaY));
    set([view[0] + x * (view[2] - side), view[1] + y * (view[3] - side), side, side]);
  }, { passive: false });
  map.addEventListener("pointerdown", (event) => {
    grip = { at: place(event), view: [...view] };
    map.setPointerCapture(event.pointerId);
  });
  map.addEventListener("pointerup", () => { grip = null; });
  map.addEventListener("dblclick", () => set([...whole]));
  map.addEventListener("pointermove", (event) => {
    if (grip) {
      const [x, y] = place(event);
      set([grip.view[0] + (grip.at[0] - x) * view[2], grip.view[1] + (grip.at[1] - y) * view[3], view[2], view[3]]);
      return;
    }
    const mark = event.target.closest("path");
    if (mark && !mark.classList.contains("faded")) show(Number(mark.dataset.i), event); else hide();
  });
  map.addEventListener("pointerleave", hide);
}
for (const button of document.querySelectorAll("li button")) {
  button.addEventListener("click", () => {
    const alone = button.getAttribute("aria-pressed") !== "true";
    for (const other of document.querySelectorAll("li button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", alone);
    points.forEach((point, index) => {
      for (const mark of marks[index]) mark.classList.toggle("faded", alone && mark.dataset.g !== button.dataset.g);
    });
  });
}
</script>
</body>
</html>
""")


def hover_page(
    maps: Sequence[FeatureMap],
    groups: Sequence[Group],
    legend_title: str,
    names: Sequence[str],
    images: Sequence[str],
    title: str,
    subtitle: str,
) -> str:
    """The maps of [`~embeddings.embedding_figure`] as a page that loads nothing else.

    Args:
        maps, groups, legend_title: As there.
        names (sequence of `str`): A name of each image, such as its file.
        images (sequence of `str`): Each image as a `data:` URI.
        title (`str`): Of the page.
        subtitle (`str`): A sentence below it.

    Returns:
        `str`: HTML.
    """
    group_of = [""] * len(names)
    for group in groups:
        for index in group.members:
            group_of[index] = group.name
    points = [
        {"group": group, "name": name, "image": image}
        for group, name, image in zip(group_of, names, images, strict=True)
    ]
    legend = "\n".join(
        f'<li><button data-g="{number}" aria-pressed="false">'
        f'<svg viewBox="-.8 -.8 1.6 1.6"><path {_look(group)}/></svg>{html.escape(group.name)}</button></li>'
        for number, group in enumerate(groups)
    )
    columns = 1 + len(groups) // 30
    return PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        side=PANEL_SIDE,
        panels="\n".join(_panel(feature_map, groups) for feature_map in maps),
        legend_title=html.escape(legend_title),
        legend=legend,
        columns=columns,
        legend_width=f"{16 * columns}em",
        maps_width=f"{660 * len(maps)}px",
        # A name could hold "</script>".
        points=json.dumps(points, ensure_ascii=False).replace("<", "\\u003c"),
    )


def _panel(feature_map: FeatureMap, groups: Sequence[Group]) -> str:
    low, high = feature_map.points.min(axis=0), feature_map.points.max(axis=0)
    span = np.where(high > low, high - low, 1)
    places = (feature_map.points - low) / span * (PANEL_SIDE - 2 * PANEL_MARGIN) + PANEL_MARGIN
    places[:, 1] = PANEL_SIDE - places[:, 1]  # up is more
    at = [f"translate({x:.1f} {y:.1f})" for x, y in places]
    size = float(np.clip(200 / np.sqrt(len(places)), 5, 13))
    marks = [
        f'<path data-i="{index}" data-g="{number}" data-at="{at[index]}" transform="{at[index]} scale({size:.1f})" {look}/>'
        for number, (group, look) in enumerate((group, _look(group)) for group in groups)
        for index in group.members
    ]
    note = f"<small>{html.escape(feature_map.note)}</small>" if feature_map.note else ""
    horizontal, vertical = map(html.escape, feature_map.axes)
    return (
        f"<figure><figcaption>{html.escape(feature_map.title)}{note}</figcaption>"
        f'<svg class="map" data-size="{size:.1f}" viewBox="0 0 {PANEL_SIDE} {PANEL_SIDE}">\n'
        + "\n".join(marks)
        + "\n</svg>"
        f'<div class="axes">→ {horizontal}, ↑ {vertical}</div>'
        f'<div class="result">{html.escape(feature_map.result or "")}</div></figure>'
    )


def _look(group: Group) -> str:
    """A group's color and shape, the same as matplotlib draws, as attributes of an SVG path one unit wide."""
    style = MarkerStyle(group.marker)
    outline = style.get_path().transformed(style.get_transform())
    commands = {OutlinePath.MOVETO: "M", OutlinePath.LINETO: "L", OutlinePath.CURVE3: "Q", OutlinePath.CURVE4: "C"}
    steps = []
    for vertices, code in outline.iter_segments():
        if code == OutlinePath.CLOSEPOLY:
            steps.append("Z")
        else:
            pairs = vertices.reshape(-1, 2) * (1, -1)  # SVG's down is matplotlib's up
            steps.append(commands[code] + " ".join(f"{x:.3g} {y:.3g}" for x, y in pairs))
    look = 'class="open"' if not style.is_filled() else f'fill="{group.color}"'
    return f'd="{"".join(steps)}" {look}'
