"""Charts as inline SVG: lines, points and bars, with colours from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xlnet.evaluation.page import escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44

Points = Sequence[tuple[float, float]]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named series of points. ``kind`` holds its style classes, such as ``one`` and ``two``, the two colours."""

    name: str
    points: Points
    kind: str = "one"
    dots: bool = False
    line: bool = True


@dataclass(frozen=True)
class Mark:
    """A position on the x axis, with a label."""

    at: float
    text: str


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    x: Bounds | None = None,
    y: Bounds | None = None,
    mark: Mark | None = None,
) -> str:
    """Draw series over two axes, as HTML; empty if no series has a point.

    The title is also the name for screen readers. Several series get a legend. Bounds of None come from the data. A
    vertical line shows the mark.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    every = [point for one in series for point in one.points]
    frame = Frame(x or _bounds([p[0] for p in every]), y or _bounds([p[1] for p in every]))
    named = [one for one in series if one.name]
    legend = ""
    if len(named) > 1:
        spans = "".join(f'<span class="{"b" if one.kind == "two" else "a"}">{escape(one.name)}</span>' for one in named)
        legend = f'<p class="legend">{spans}</p>'
    body = frame.axes(x_label, y_label) + "".join(_drawn(one, frame) for one in series)
    body += _marked(mark, frame) if mark else ""
    return f"<h3>{escape(title)}</h3>{legend}{_svg(title, body)}"


def bars(title: str, x_label: str, y_label: str, heights: Sequence[tuple[str, float]]) -> str:
    """Draw bars from left to right, each a height with a word under it, as HTML; empty if there are none."""
    if not heights:
        return ""
    frame = Frame((0, len(heights)), (0, max(1.0, *(height for _, height in heights))))
    every = math.ceil(len(heights) / 8)  # at most eight words fit side by side
    body = frame.axes("", y_label, x_ticks=False)
    for index, (word, height) in enumerate(heights):
        left, right, top = frame.x(index + 0.06), frame.x(index + 0.94), frame.y(height)
        body += (
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{max(0.0, frame.y(0) - top):.1f}"><title>{escape(word)}: {height:,g}</title></rect>'
        )
        if index % every == 0:
            middle = (left + right) / 2
            body += f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(word)}</text>'
    body += f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    return f"<h3>{escape(title)}</h3>{_svg(title, body)}"


@dataclass(frozen=True)
class Frame:
    """Converts data coordinates to pixels and draws the axes."""

    across: Bounds
    up: Bounds

    def x(self, value: float) -> float:
        """Return a value's distance from the left edge in pixels."""
        low, high = self.across
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return a value's distance from the top edge in pixels."""
        low, high = self.up
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: bool = True) -> str:
        """Draw the grid lines, their numbers and the axis labels."""
        parts = []
        for value in ticks(*self.up):
            y = self.y(value)
            parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        for value in ticks(*self.across) if x_ticks else []:
            x, y = self.x(value), HEIGHT - BOTTOM + 16
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{number(value)}</text>')
        middle, centre = (TOP + HEIGHT - BOTTOM) / 2, (LEFT + WIDTH - RIGHT) / 2
        if x_label:
            parts.append(f'<text x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        turned = f'transform="rotate(-90 12 {middle})"'
        parts.append(f'<text x="12" y="{middle}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
        return "".join(parts)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Choose round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """Format a tick's number."""
    if abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.6g}"


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """Reduce to at most ``most`` points by averaging neighbours."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(p[0] for p in group) / len(group), sum(p[1] for p in group) / len(group)) for group in groups]


def _bounds(values: Sequence[float]) -> Bounds:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(1.0, abs(high)):  # a single value needs room on both sides
        room = max(0.5, abs(high) * 0.1)
        return low - room, high + room
    room = 0.04 * (high - low)
    return (low if 0 <= low < room else low - room), high + room


def _drawn(one: Series, frame: Frame) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in one.points]
    parts = []
    if one.line and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        kind = one.kind if one.kind == "dash" else f"curve {one.kind}"
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    if one.dots or len(places) == 1:
        for (x, y), (left, up) in zip(places, one.points, strict=True):
            hint = f"<title>{escape(one.name)}: {left:g}, {up:.4g}</title>" if one.line else ""
            parts.append(f'<circle class="dot {one.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3">{hint}</circle>')
    return "".join(parts)


def _marked(mark: Mark, frame: Frame) -> str:
    x = frame.x(mark.at)
    if not LEFT <= x <= WIDTH - RIGHT:
        return ""
    side, shift = ("end", -5) if x > (LEFT + WIDTH - RIGHT) / 2 else ("start", 5)
    line = f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    words = f'<text class="mark" x="{x + shift:.1f}" y="{TOP + 10}" text-anchor="{side}">{escape(mark.text)}</text>'
    return line + words


def _svg(title: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
