"""The style sheet and the HTML building blocks of the report."""

import html
import math
from collections.abc import Iterable, Sequence

SHORT = 160  # characters of a long text that are shown without unfolding it
LONGEST = 4000  # characters of a text that the page holds; predictions.parquet has the whole text

CSS = """
:root { color-scheme: light dark; --page:#f9f9f7; --card:#fcfcfb; --ink:#0b0b0b; --soft:#52514e; --line:#e1e0d9;
  --one:#2a78d6; --two:#b8500f; --heat:#2a78d6; }
@media (prefers-color-scheme: dark) { :root { --page:#0d0d0d; --card:#1a1a19; --ink:#fff; --soft:#c3c2b7;
  --line:#3a3a38; --one:#5fa3f0; --two:#f0955a; --heat:#2f6fbd; } }
* { box-sizing: border-box; }
body { margin:0 auto; max-width:1100px; padding:1.5rem 1rem 4rem; background:var(--page); color:var(--ink);
  font:16px/1.5 system-ui, sans-serif; overflow-wrap:anywhere; }
h1, h2, h3, caption, th, .tile { overflow-wrap:break-word; } h1, h2, h3 { text-wrap:balance; }
h1 { font-size:1.6rem; line-height:1.25; margin:0 0 .5rem; } h1 .soft { font-weight:400; }
h2 { font-size:1.2rem; margin:2.5rem 0 .75rem; }
h3, caption { font-size:1rem; font-weight:600; text-align:left; margin:0; padding:0 0 .5rem; }
caption, .scroll h3 { position:sticky; left:0; }
.facts { display:grid; grid-template-columns:max-content minmax(0, 1fr); gap:.1rem 1rem; margin:.25rem 0 1rem; }
.facts dt { color:var(--soft); } .facts dd { margin:0; }
p { margin:.25rem 0 .75rem; } .soft, small { color:var(--soft); } small { font-size:.85rem; }
.grid { display:grid; gap:1rem; grid-template-columns:repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.tiles { display:grid; gap:1rem; grid-template-columns:repeat(auto-fit, minmax(140px, 1fr)); margin-top:1.25rem; }
.card { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:1rem; min-width:0; margin:0; }
.tile b { display:block; font-size:1.9rem; line-height:1.2; font-weight:600; } .tile.first { border-color:var(--one); }
.scroll { overflow:auto; max-height:80vh; } .scroll:focus-visible { outline:2px solid var(--one); }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { padding:.3rem .6rem; border-bottom:1px solid var(--line); text-align:left; vertical-align:top; }
thead th { font-weight:600; color:var(--soft); } .n { text-align:right; white-space:nowrap; }
th[scope=row] { font-weight:500; } .text { min-width:16rem; white-space:pre-wrap; }
.words th, .words td { overflow-wrap:normal; } code { font-size:.85rem; overflow-wrap:anywhere; }
details summary { cursor:pointer; } .notes { margin-top:1.25rem; }
.confusion { width:auto; border-collapse:separate; border-spacing:1px; font-size:.85rem; overflow-wrap:normal; }
.confusion th, .confusion td { border:0; padding:.25rem .4rem; white-space:nowrap; background:var(--card); }
.confusion:not(.many) td { min-width:4rem; padding:.6rem; text-align:center; }
.confusion thead th { position:sticky; top:0; z-index:1; vertical-align:bottom; text-align:center; }
.confusion tbody th { position:sticky; left:0; z-index:1; text-align:right; }
.confusion thead th:first-child { left:0; z-index:2; }
.confusion.many thead th:not(:first-child) { writing-mode:vertical-rl; transform:rotate(180deg); text-align:left; }
.confusion td { text-align:center; min-width:2.2rem;
  background:color-mix(in srgb, var(--heat) calc(var(--share, 0) * 100%), var(--card)); }
.confusion td.deep { color:#fff; } .confusion td.right { font-weight:700; }
svg { display:block; width:100%; height:auto; max-width:560px; } svg text { fill:var(--soft); font-size:12px; }
.axis { stroke:var(--line); } .one { stroke:var(--one); } .two { stroke:var(--two); }
.curve { fill:none; stroke-width:2; } .dash { fill:none; stroke:var(--soft); stroke-dasharray:4 4; }
.dot.one, .bar { fill:var(--one); } .dot.two { fill:var(--two); } .dot { stroke:none; } .dot.faint { opacity:.45; }
.legend { display:flex; flex-wrap:wrap; gap:0 1.25rem; font-size:.85rem; color:var(--soft); margin:0 0 .25rem; }
.legend span::before { content:""; display:inline-block; width:1rem; height:3px; margin-right:.4rem;
  vertical-align:middle; background:var(--one); } .legend .b::before { background:var(--two); }
line.mark { stroke:var(--ink); stroke-dasharray:2 3; }
svg text.mark { fill:var(--ink); font-weight:600; paint-order:stroke;
  stroke:var(--card); stroke-width:4px; }
@media (max-width:560px) {
  body { padding:.75rem .75rem 3rem; font-size:14px; } h1 { font-size:1.35rem; } h2 { margin-top:2rem; }
  .grid, .tiles { gap:.75rem; } .card { padding:.75rem; } .tile b { font-size:1.4rem; } svg text { font-size:15px; }
  th, td { padding:.3rem .35rem; } .words { font-size:.9rem; }
  .words caption { max-width:calc(100vw - 3.2rem); }
  .stacked thead { display:none; } .stacked, .stacked tbody, .stacked tr, .stacked th, .stacked td { display:block; }
  .stacked caption { display:block; } .stacked tr { padding:.5rem 0; border-bottom:1px solid var(--line); }
  .stacked th, .stacked td, .stacked .n { border:0; padding:.1rem 0; text-align:left; } .stacked .text { min-width:0; }
  .stacked td.n, .stacked td[data-head] { display:inline-block; padding-right:1rem; }
  .stacked td::before { content:attr(data-head) ": "; color:var(--soft); }
}
@media (max-width:420px) { .words { font-size:.8rem; } .words th, .words td { padding:.3rem .2rem; } }
@media print {
  :root { color-scheme:light; --page:#fff; --card:#fff; --ink:#000; --soft:#444; --line:#bbb; --one:#2a78d6;
    --two:#b8500f; --heat:#2a78d6; }
  @page { margin:14mm; }
  body { max-width:none; padding:0; font-size:10.5pt; } * { print-color-adjust:exact; }
  .scroll { overflow:visible; max-height:none; } .confusion th { position:static; }
  h2, h3, caption { break-after:avoid; } tr, .tile, svg, .grid .card { break-inside:avoid; }
  thead { display:table-header-group; }
}
"""


def document(title: str, sections: Iterable[str]) -> str:
    """Make a whole page that needs no other file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """Make a section of the page with a heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def grid(*cards: str) -> str:
    """Put cards side by side if there is room; omit empty ones."""
    return '<div class="grid">' + "\n".join(card(one) for one in cards if one) + "</div>"


def card(content: str) -> str:
    """Make a framed box."""
    return f'<div class="card">{content}</div>'


def scrolling(content: str, label: str) -> str:
    """Make a box that scrolls separately, also with the keyboard."""
    return f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Show names and values, given as text, one pair per line."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{lines}</dl>'


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    stacked: bool = False,
) -> str:
    """Make a table of HTML cells, whose first column contains the row headers; caption and column names are text.

    The columns with the indices ``numbers`` are right-aligned. If ``stacked``, a narrow screen shows each row as a
    block with one line per cell.
    """
    names = [f' data-head="{escape(name)}"' if stacked else "" for name in head]
    mark = [' class="n"' if index in numbers else "" for index in range(len(head))]
    top = "".join(f'<th scope="col"{mark[i]}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "\n".join(
        f'<tr><th scope="row"{mark[0]}>{row[0]}</th>'
        + "".join(f"<td{mark[i]}{names[i]}>{cell}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    kind = "words stacked" if stacked else "words"
    return (
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def escape(value: object) -> str:
    """Escape text for HTML."""
    return html.escape(str(value))


def folded(text: str) -> str:
    """Show a text as HTML; a long text is folded after its beginning."""
    if len(text) <= SHORT:
        return escape(text)
    rest = text if len(text) <= LONGEST else text[:LONGEST] + f" … ({len(text) - LONGEST:,} more characters)"
    return f"<details><summary>{escape(text[:SHORT])}…</summary>{escape(rest)}</details>"


def figure(value: float | None) -> str:
    """Format a metric's value, or say that it has none."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"


def share(value: float) -> str:
    """Format a share of rows as a percentage; a dash if there are no rows."""
    return f"{value:.1%}" if math.isfinite(value) else "–"
