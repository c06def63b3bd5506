"""Charts as inline SVG: lines, bars and points, coloured by the page's own style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40

Range = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One series; ``css`` names its colour class in the page's style sheet."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    css: str
    dots: bool = False


def lines(title: str, x_label: str, y_label: str, series: Sequence[Line], unit_square: bool = False) -> str:
    """A chart of one or more series over common axes."""
    xs = [x for line in series for x in line.xs]
    ys = [y for line in series for y in line.ys if math.isfinite(y)]
    if not xs or not ys:
        return f"<p class='note'>{escape(title)}: nothing was recorded.</p>"
    x_range = (0.0, 1.0) if unit_square else _widened(min(xs), max(xs))
    y_range = (0.0, 1.0) if unit_square else _widened(min(ys), max(ys))
    scale_x, scale_y = _scale(x_range, LEFT, WIDTH - RIGHT), _scale(y_range, HEIGHT - BOTTOM, TOP)
    body = [_axes(x_range, y_range, scale_x, scale_y, x_label, y_label)]
    for line in series:
        points = [(scale_x(x), scale_y(y)) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if line.dots:
            body += [f"<circle class='dot {line.css}' cx='{x:.1f}' cy='{y:.1f}' r='3'/>" for x, y in points]
        if not line.dots or len(points) < 60:
            body.append(f"<polyline class='line {line.css}' points='{text}'/>")
    legend = "".join(f"<span class='key {line.css}'>{escape(line.label)}</span>" for line in series)
    return _figure(title, "".join(body), legend)


def scatter(title: str, x_label: str, y_label: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Points, with the diagonal on which both are equal."""
    low, high = _widened(min([*xs, *ys]), max([*xs, *ys]))
    scale_x, scale_y = _scale((low, high), LEFT, WIDTH - RIGHT), _scale((low, high), HEIGHT - BOTTOM, TOP)
    body = [_axes((low, high), (low, high), scale_x, scale_y, x_label, y_label)]
    ends = f"{scale_x(low):.1f},{scale_y(low):.1f} {scale_x(high):.1f},{scale_y(high):.1f}"
    body.append(f"<polyline class='line faint' points='{ends}'/>")
    body += [
        f"<circle class='dot c0' cx='{scale_x(x):.1f}' cy='{scale_y(y):.1f}' r='2.5'/>"
        for x, y in zip(xs, ys, strict=True)
    ]
    return _figure(title, "".join(body), "")


def bars(title: str, x_label: str, labels: Sequence[str], counts: Sequence[float]) -> str:
    """Vertical bars, each with its label below and its count above."""
    if not counts or max(counts) <= 0:
        return f"<p class='note'>{escape(title)}: nothing to show.</p>"
    slot = (WIDTH - LEFT - RIGHT) / len(counts)
    scale_y = _scale((0.0, float(max(counts)) * 1.1), HEIGHT - BOTTOM, TOP)
    body = [_x_label(x_label)]
    for i, (label, count) in enumerate(zip(labels, counts, strict=True)):
        x, y = LEFT + i * slot, scale_y(count)
        body.append(
            f"<rect class='bar' x='{x + slot * 0.12:.1f}' y='{y:.1f}' width='{slot * 0.76:.1f}' "
            f"height='{HEIGHT - BOTTOM - y:.1f}'/>"
            f"<text class='tick' x='{x + slot / 2:.1f}' y='{y - 4:.1f}' text-anchor='middle'>{count:,.0f}</text>"
            f"<text class='tick' x='{x + slot / 2:.1f}' y='{HEIGHT - BOTTOM + 14}' text-anchor='middle'>"
            f"{escape(label)}</text>"
        )
    return _figure(title, "".join(body), "")


def _figure(title: str, body: str, legend: str) -> str:
    return (
        f"<figure><figcaption>{escape(title)} {legend}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title, quote=True)}'>{body}</svg></figure>"
    )


def _axes(x_range: Range, y_range: Range, scale_x: Scale, scale_y: Scale, x_label: str, y_label: str) -> str:
    parts = []
    for value in _ticks(*y_range):
        y = scale_y(value)
        parts.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text class='tick' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{_number(value)}</text>"
        )
    for value in _ticks(*x_range):
        x = scale_x(value)
        parts.append(
            f"<text class='tick' x='{x:.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>{_number(value)}</text>"
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"transform='translate(12 {middle}) rotate(-90)'"
    parts += [_x_label(x_label), f"<text class='label' {turned} text-anchor='middle'>{escape(y_label)}</text>"]
    return "".join(parts)


def _x_label(label: str) -> str:
    return f"<text class='label' x='{(LEFT + WIDTH) / 2}' y='{HEIGHT - 4}' text-anchor='middle'>{escape(label)}</text>"


def _widened(low: float, high: float) -> Range:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _scale(domain: Range, start: float, end: float) -> Scale:
    low, high = domain
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
