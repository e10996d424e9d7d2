"""SVG of a :class:`GraphView`: boxes in wrapped rows, arrows labelled with bytes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from markupsafe import Markup, escape

from autopar.core.units import format_bytes
from autopar.reporting.graph_view import Arrow, GraphView, Node
from autopar.reporting.palette import stage_color
from autopar.reporting.text import middle, quantity

BOX_W, BOX_H = 178, 58
GAP_X, GAP_Y = 62, 20
MARGIN = 16
MAX_COLUMNS = 4
BAND_GAP = 46
CORNER = 10
MAX_LABELS = 48


@dataclass(frozen=True, slots=True)
class Spot:
    """Upper left corner of a box, its row of boxes and its column inside the row."""

    x: float
    y: float
    band: int
    column: int


def layout(view: GraphView) -> tuple[dict[int, Spot], float, float]:
    """Places of the boxes, and the size of the drawing.

    Columns are topological generations; every :data:`MAX_COLUMNS` columns start a new band.
    """
    generations: dict[int, list[int]] = defaultdict(list)
    for node, column in sorted(view.columns().items()):
        generations[column].append(node)
    bands: dict[int, int] = defaultdict(int)
    for column, nodes in generations.items():
        bands[column // MAX_COLUMNS] = max(bands[column // MAX_COLUMNS], len(nodes))
    spots: dict[int, Spot] = {}
    tops: dict[int, float] = {}
    top = float(MARGIN + 14)
    for band in sorted(bands):
        tops[band] = top
        top += bands[band] * (BOX_H + GAP_Y) - GAP_Y + BAND_GAP
    for column, nodes in generations.items():
        band, place = divmod(column, MAX_COLUMNS)
        for row, node in enumerate(nodes):
            x = MARGIN + place * (BOX_W + GAP_X)
            spots[node] = Spot(x, tops[band] + row * (BOX_H + GAP_Y), band, place)
    columns = min(len(generations), MAX_COLUMNS)
    width = 2 * MARGIN + columns * (BOX_W + GAP_X) - GAP_X + 14
    return spots, width, top - BAND_GAP + MARGIN + 14


def graph_svg(view: GraphView, label: str) -> Markup:
    """The drawing; every string is escaped, every box has a tooltip."""
    spots, width, height = layout(view)
    stage = {node.index: node.stage for node in view.nodes}
    arrows = [
        _arrow(arrow, spots, crosses=stage[arrow.producer] != stage[arrow.consumer],
               labelled=_labelled(arrow, view, stage))
        for arrow in view.arrows
    ]  # fmt: skip
    heaviest = max((node.flop or 0.0 for node in view.nodes), default=0.0)
    prefix = common_prefix([node.name for node in view.nodes])
    boxes = [_box(node, spots[node.index], heaviest, prefix) for node in view.nodes]
    head = Markup(
        '<svg class="graph" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        '<path d="M0 0L8 4L0 8z" class="head"/></marker></defs>'
    ).format(label, round(width), round(height), round(width), round(height))
    return head + Markup("").join([*arrows, *boxes]) + Markup("</svg>")


def _labelled(arrow: Arrow, view: GraphView, stage: dict[int, int]) -> bool:
    return len(view.arrows) <= MAX_LABELS or stage[arrow.producer] != stage[arrow.consumer]


def _arrow(arrow: Arrow, spots: dict[int, Spot], *, crosses: bool, labelled: bool) -> Markup:
    start, end = spots[arrow.producer], spots[arrow.consumer]
    path, tag_x, tag_y = _route(start, end)
    size = format_bytes(arrow.size_bytes)
    text = Markup('<text class="bytes" x="{:.0f}" y="{:.0f}">{}</text>').format(
        tag_x, tag_y, size.replace(".00 ", " ")
    )
    return Markup('<g class="edge{}"><title>{} per microbatch</title><path d="{}"/>{}</g>').format(
        " cut" if crosses else "", size, path, text if labelled else Markup("")
    )


def _route(start: Spot, end: Spot) -> tuple[str, float, float]:
    """Path of an arrow and where its label stands."""
    if start.band != end.band:
        return _between_bands(start, end)
    if end.column == start.column + 1:
        x0, y0 = round(start.x + BOX_W), round(start.y + BOX_H / 2)
        x1, y1 = round(end.x) - 2, round(end.y + BOX_H / 2)
        bend = GAP_X // 2
        path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
        return path, (x0 + x1) / 2, (y0 + y1) / 2 - 6
    return _over(start, end)


def _over(start: Spot, end: Spot) -> tuple[str, float, float]:
    """An arc above the row, for arrows that skip columns."""
    a, b = round(start.x + BOX_W * 0.75), round(end.x + BOX_W * 0.25)
    lift = round(min(start.y, end.y)) - 20
    path = f"M{a} {round(start.y)}C{a} {lift} {b} {lift} {b} {round(end.y) - 2}"
    return path, (a + b) / 2, lift + 7


def _between_bands(start: Spot, end: Spot) -> tuple[str, float, float]:
    """Down out of a box, along the gap above the next row, down into the other box."""
    a, b = round(start.x + BOX_W / 2), round(end.x + BOX_W / 2)
    top, bottom = round(start.y + BOX_H), round(end.y) - 2
    level = bottom - BAND_GAP // 2 - 4 * (end.band - start.band - 1)
    if abs(a - b) < 2 * CORNER:
        return f"M{a} {top}L{b} {bottom}", (a + b) / 2 + 26, level + 4
    turn = CORNER if b > a else -CORNER
    path = (
        f"M{a} {top}V{level - CORNER}Q{a} {level} {a + turn} {level}"
        f"H{b - turn}Q{b} {level} {b} {level + CORNER}V{bottom}"
    )
    return path, (a + b) / 2, level - 4


def common_prefix(names: list[str]) -> str:
    """The module path all names begin with, dot included; empty when there is none."""
    if len(names) < 2:
        return ""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared) + "." if shared else ""


def _box(node: Node, spot: Spot, heaviest: float, prefix: str) -> Markup:
    color = stage_color(node.stage)
    lines = _lines(node)
    share = (node.flop or 0.0) / heaviest if heaviest else 0.0
    tip = " · ".join([node.name, *([f"stage {node.stage}"] if node.stage >= 0 else []), *lines])
    parts = [
        Markup('<g class="node"><title>{}</title>').format(tip),
        Markup('<rect class="box" x="{:.0f}" y="{:.0f}" width="{}" height="{}" rx="7"/>').format(
            spot.x, spot.y, BOX_W, BOX_H
        ),
        Markup('<rect x="{:.0f}" y="{:.0f}" width="6" height="{}" rx="3" fill="{}"/>').format(
            spot.x, spot.y, BOX_H, color
        ),
        Markup(
            '<rect class="work" x="{:.0f}" y="{:.0f}" width="{:.0f}" height="3" fill="{}"/>'
        ).format(spot.x + 12, spot.y + BOX_H - 8, max(share * (BOX_W - 24), 0), color),
        Markup('<text class="name" x="{:.0f}" y="{:.0f}">{}</text>').format(
            spot.x + 14, spot.y + 20, _title(node, prefix)
        ),
        Markup('<text class="sub" x="{:.0f}" y="{:.0f}">{}</text>').format(
            spot.x + 14, spot.y + 37, " · ".join(lines)
        ),
    ]
    if node.stage >= 0:
        parts.append(
            Markup('<text class="chip" x="{:.0f}" y="{:.0f}">S{}</text>').format(
                spot.x + BOX_W - 8, spot.y + 20, node.stage
            )
        )
    return Markup("").join(parts) + Markup("</g>")


def _title(node: Node, prefix: str) -> str:
    """Name inside the box: without the shared prefix, a run of blocks as ``first … last``."""
    first, _, last = node.name.partition(" … ")
    first, last = first.removeprefix(prefix), last.removeprefix(prefix)
    if not last:
        return middle(first, 18)
    return f"{middle(first, 8)} … {middle(last, 8)}"


def _lines(node: Node) -> list[str]:
    lines = [f"\N{MULTIPLICATION SIGN}{node.blocks}"] if node.blocks > 1 else []
    if node.flop is not None:
        lines.append(quantity(node.flop, "FLOP"))
    if node.parameter_bytes:
        lines.append(format_bytes(node.parameter_bytes))
    return [str(escape(line)) for line in lines] if lines else ["one block"]
