"""Draws an acyclic graph as SVG, in layers from left to right or from top to bottom. Each box is a link or a button."""

import graphlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, LINE, PAD = 188, 15, 9  # a box's width, the height of a line of text, and the padding around the text
ACROSS, DOWN, MARGIN = 56, 14, 10  # space between layers, between boxes, and around the drawing
LETTERS = 23  # characters that fit into a box
SWEEPS = 4  # passes that reduce the number of crossing edges


@dataclass(frozen=True)
class Box:
    """A node to draw: lines of text, the first one small, the second one bold."""

    id: str
    lines: tuple[str, ...]
    kind: str  # style class
    link: str = ""  # empty: the box is a button, for a page's script
    hint: str = ""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return 2 * PAD + LINE * len(self.lines)


@dataclass
class _Place:
    layer: int
    box: Box | None  # None: an edge passes here
    x: float = 0.0
    y: float = 0.0  # of the middle
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def height(self) -> float:
        return self.box.height if self.box else 4.0


def draw(boxes: Sequence[Box], edges: Iterable[tuple[str, str]], label: str, down: bool = False) -> Markup:
    """Draw boxes and the edges between them.

    Args:
        boxes: the nodes.
        edges: pairs (from, to) of ids. Edges of nodes that are not in ``boxes`` are left out.
        label: the drawing's name for screen readers.
        down: whether the layers run from top to bottom, for narrow screens.
    """
    known = {box.id: box for box in boxes}
    pairs = [pair for pair in dict.fromkeys(edges) if pair[0] in known and pair[1] in known]
    places, paths = _layered(known, pairs)
    layers = _ordered(places)
    width, height = _arrange(layers, places, down)
    parts = [_edge(path, places, down) for path in paths] + [_box(one) for one in places.values() if one.box]
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="group" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )


def _layered(known: dict[str, Box], pairs: list[tuple[str, str]]) -> tuple[dict[str, _Place], list[list[str]]]:
    """Put each box into the layer of its longest path from a source, and route edges through the layers between."""
    layer = _longest(list(known), pairs)
    places = {name: _Place(layer[name], box) for name, box in known.items()}
    paths = []
    for number, (start, end) in enumerate(pairs):
        path = [start]
        for between in range(layer[start] + 1, layer[end]):
            path.append(f"\0{number}-{between}")
            places[path[-1]] = _Place(between, None)
        path.append(end)
        paths.append(path)
        for one, other in itertools.pairwise(path):
            places[one].after.append(other)
            places[other].before.append(one)
    return places, paths


def _longest(names: list[str], pairs: list[tuple[str, str]]) -> dict[str, int]:
    before: dict[str, list[str]] = {name: [] for name in names}
    after: dict[str, list[str]] = {name: [] for name in names}
    for start, end in pairs:
        before[end].append(start)
        after[start].append(end)
    layer: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(before).static_order():
        layer[name] = max((layer[one] + 1 for one in before[name]), default=0)
    for name in names:  # place each source directly before its first successor
        if after[name] and layer[name] == 0:
            layer[name] = min(layer[other] for other in after[name]) - 1
    return layer


def _ordered(places: dict[str, _Place]) -> list[list[str]]:
    """Order each layer so that few edges cross: by the mean position of the neighbours, back and forth."""
    count = max((one.layer for one in places.values()), default=-1) + 1
    layers: list[list[str]] = [[] for _ in range(count)]
    for name, one in places.items():
        layers[one.layer].append(name)
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for index in range(1, count) if forward else range(count - 2, -1, -1):
            fixed = {name: at for at, name in enumerate(layers[index - 1 if forward else index + 1])}
            own = {name: at for at, name in enumerate(layers[index])}
            middles = {}
            for name in layers[index]:
                near = [fixed[one] for one in (places[name].before if forward else places[name].after) if one in fixed]
                middles[name] = sum(near) / len(near) if near else float(own[name])
            layers[index].sort(key=middles.__getitem__)
    return layers


def _arrange(layers: list[list[str]], places: dict[str, _Place], down: bool) -> tuple[float, float]:
    """Set the coordinates; return the drawing's width and height."""
    tallest = max((one.height for one in places.values()), default=0.0)
    depth = (tallest if down else WIDTH) + ACROSS  # from one layer to the next
    breadths = [[_breadth(places[name], down) + DOWN for name in layer] for layer in layers]
    broadest = max(map(sum, breadths), default=DOWN) - DOWN
    for index, (layer, breadth) in enumerate(zip(layers, breadths, strict=True)):
        along, across = MARGIN + index * depth, MARGIN + (broadest - sum(breadth) + DOWN) / 2
        for name, extent in zip(layer, breadth, strict=True):
            one, middle = places[name], across + (extent - DOWN) / 2
            one.x, one.y = (middle - WIDTH / 2, along + tallest / 2) if down else (along, middle)
            across += extent
    length, wide = 2 * MARGIN + len(layers) * depth - ACROSS, 2 * MARGIN + broadest
    return (wide, length) if down else (length, wide)


def _breadth(place: _Place, down: bool) -> float:
    return WIDTH if down and place.box else place.height


def _edge(path: list[str], places: dict[str, _Place], down: bool) -> str:
    def ends(place: _Place) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return where edges enter and leave."""
        if down:
            middle, half = place.x + WIDTH / 2, place.height / 2
            return (middle, place.y - half), (middle, place.y + half)
        return (place.x, place.y), (place.x + WIDTH, place.y)

    points = [point for name in path for point in ends(places[name])][1:-1]
    words = f"M{points[0][0]:.0f} {points[0][1]:.1f}"
    for (x, y), (right, below) in itertools.pairwise(points):
        bend = (below - y) / 2 if down else (right - x) / 2
        words += (
            f"C{x:.0f} {y + bend:.1f} {right:.0f} {below - bend:.1f}"
            if down
            else (f"C{x + bend:.0f} {y:.1f} {right - bend:.0f} {below:.1f}")
        )
        words += f" {right:.0f} {below:.1f}"
    of = f'data-from="{escape(path[0])}" data-to="{escape(path[-1])}"'
    tip = f"M{points[-1][0]:.0f} {points[-1][1]:.1f}" + ("l-4 -7h8z" if down else "l-7 -4v8z")
    return f'<path class="edge" {of} d="{words}"/><path class="arrow" d="{tip}"/>'


def _box(place: _Place) -> str:
    box = place.box
    assert box
    left, top = place.x, place.y - box.height / 2
    lines = []
    for number, line in enumerate(box.lines):
        style = ("small", "bold")[number] if number < 2 else "soft"
        y = top + PAD + LINE * (number + 0.78)
        shown = escape(_cut(line, LETTERS - 2 * (number == 1)))
        lines.append(f'<text class="{style}" x="{left + 14:.0f}" y="{y:.1f}">{shown}</text>')
    body = (
        f'<rect class="box" x="{left:.0f}" y="{top:.1f}" width="{WIDTH}" height="{box.height}" rx="5"/>'
        f'<rect class="stripe" x="{left:.0f}" y="{top:.1f}" width="5" height="{box.height}" rx="2"/>'
        f"<title>{escape(box.hint or ' '.join(box.lines))}</title>{''.join(lines)}"
    )
    if box.link:
        return f'<a href="{escape(box.link)}"><g class="node {escape(box.kind)}">{body}</g></a>'
    button = f'data-id="{escape(box.id)}" tabindex="0" role="button" aria-pressed="false"'
    return f'<g class="node {escape(box.kind)}" {button} aria-label="{escape(" ".join(box.lines[:2]))}">{body}</g>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
