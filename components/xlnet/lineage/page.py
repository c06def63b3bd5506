"""Draws one artifact's lineage as a small page without scripts that fits the backends' frames of 480 × 520 px.

Each artifact is one row, above its inputs. Lines beside the rows lead from each artifact to its inputs.
"""

import html
import re
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data.values import printable
from xlnet.lineage.facts import execution_of, facts_of
from xlnet.lineage.nodes import Lineage, LineageNode, build, short

ROOM = 472  # pixels for the rows: the frame's height without the heading
HEAD, LINE, GAP = 20, 17, 4  # pixels of a row's heading, of a line of facts, and below a row
TALLEST = HEAD + 4 * LINE + GAP  # pixels of one row
LANE, FIRST = 9, 10  # pixels between lines beside the rows; from the edge to the dots
MOST_ROWS = ROOM // HEAD
LONGEST = 300  # maximum characters of a fact; the frame shows about 60 per line
FILES = ("file", "files")

CSS = """
:root { color-scheme: light dark; --page:#f9f9f7; --ink:#17191c; --soft:#5a5f66;
  --registration:#7b3fa0; --evaluation:#0f7173; --model:#1a5fb4; --dataset:#96600a; --snapshot:#5b6570;
  --file:#666c73; }
@media (prefers-color-scheme: dark) { :root { --page:#131416; --ink:#e9eaec; --soft:#a4a9b0;
  --registration:#c490e4; --evaluation:#5cc5c7; --model:#7db3f5; --dataset:#e3b04b; --snapshot:#a9b2bc;
  --file:#9aa0a6; } }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:1100px; padding:8px 10px; background:var(--page); color:var(--ink);
  font:13px/17px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size:16px; line-height:22px; margin:0 0 8px; font-weight:650; }
h1, .head, .row p { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
p { margin:0; } .row p.many { display:-webkit-box; -webkit-box-orient:vertical; white-space:normal; }
.made, small { color:var(--soft); } small { font-weight:400; font-size:12px; }
.rows { position:relative; } .rows svg { position:absolute; left:0; top:0; }
.row { overflow:hidden; } .head { line-height:20px; } .head b { font-weight:650; } .head code { color:var(--soft);
  font:11.5px ui-monospace, "DejaVu Sans Mono", monospace; }
.kind { color:var(--kind); font-size:11.5px; font-weight:600; margin-right:4px; } .made { font-size:12px; }
path { fill:none; stroke:var(--kind); stroke-width:1.6; opacity:.75; } circle { fill:var(--kind); }
.registration { --kind:var(--registration); } .evaluation { --kind:var(--evaluation); } .model { --kind:var(--model); }
.dataset { --kind:var(--dataset); } .snapshot { --kind:var(--snapshot); } .file, .files { --kind:var(--file); }
@media print { :root { color-scheme:light; } body { max-width:none; } * { print-color-adjust:exact; } }
"""


def write(artifact: str | Path, path: str | Path) -> None:
    """Write the lineage page of an artifact's directory to a file.

    Raises:
        UserError: the directory has no ``lineage.json``.
        CorruptArtifact: that file is not a lineage.
    """
    lineage = provenance.read(artifact)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = draw(build(Path(artifact).name, lineage, str(artifact), {}, {}, {}))
    Path(path).write_text(text, encoding="utf-8", errors="replace")


def draw(lineage: Lineage) -> str:
    """Return the page of a lineage graph, which needs no other file."""
    nodes, left_out = _shortened(_in_order(lineage))
    root = nodes[0]
    heights = _heights(nodes)
    drawn, width = _lines(nodes, heights)
    rows = "\n".join(_row(node, height, width) for node, height in zip(nodes, heights, strict=True))
    title = f"Lineage of {_text(root.title or f'{root.type} {short(root.digest)}')}"
    soft = f"{left_out:,} more inputs in lineage.json" if left_out else "the result first, its input files last"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title} <small>{soft}</small></h1>\n"
        f'<div class="rows"><svg width="{width}" height="{sum(heights)}" aria-hidden="true">{drawn}</svg>\n'
        f"{rows}\n</div>\n</main>\n</body>\n</html>\n"
    )


def _in_order(lineage: Lineage) -> list[LineageNode]:
    """Return the nodes so that each artifact stands above its inputs, and close to them."""
    depth = dict.fromkeys(lineage.nodes, 0)
    waiting = [lineage.root]
    while waiting:
        name = waiting.pop()
        for one in lineage.nodes[name].inputs:
            if depth[one] <= depth[name]:
                depth[one] = depth[name] + 1
                waiting.append(one)
    return sorted(lineage.nodes.values(), key=lambda node: depth[node.id])


def _shortened(nodes: list[LineageNode]) -> tuple[list[LineageNode], int]:
    """Leave out nodes for which there is no room, input files first; return the rest, and how many were left out."""
    kept = list(nodes)
    for node in reversed(nodes):
        if len(kept) > MOST_ROWS and node.type in FILES:
            kept.remove(node)
    return kept[:MOST_ROWS], len(nodes) - len(kept[:MOST_ROWS])


def _heights(nodes: list[LineageNode]) -> list[int]:
    """Choose each row's height in pixels: the fewer rows there are, the more facts each one shows."""
    files = sum(node.type in FILES for node in nodes)
    others = max(1, len(nodes) - files)
    line = HEAD + LINE + GAP
    if (ROOM - files * line) // others < HEAD + 2 * LINE + GAP:
        line = min(HEAD + 2, ROOM // len(nodes))
    rest = min(TALLEST, (ROOM - files * line) // others)
    heights = [line if node.type in FILES else rest for node in nodes]
    heights[0] += min(LINE, ROOM - sum(heights))  # the gate's reason is long
    return heights


def _lines(nodes: list[LineageNode], heights: list[int]) -> tuple[str, int]:
    """Draw a dot for each row, and lines to its inputs; return the drawing and its width in pixels.

    A straight line leads to an input in the next row. The lines to an artifact's other inputs share a lane.
    """
    tops = [sum(heights[:row]) for row in range(len(nodes))]
    y = {node.id: top + HEAD // 2 for node, top in zip(nodes, tops, strict=True)}
    ends: list[int] = []  # of each lane: how far down it is used
    parts = []
    for row, node in enumerate(nodes):
        here = y[node.id]
        below = nodes[row + 1].id if row + 1 < len(nodes) else ""
        far = [y[one] for one in node.inputs if one in y and one != below]
        if below in node.inputs:
            parts.append(_path(node, f"M{FIRST} {here}V{y[below]}"))
        if far:
            lane = next((number for number, end in enumerate(ends) if end <= here), len(ends))
            ends[lane : lane + 1] = [max(far)]
            x = FIRST + LANE * (lane + 1)
            start = f"M{FIRST} {here}Q{x} {here} {x} {here + 6}"
            parts += [_path(node, f"{start}V{end - 6}Q{x} {end} {FIRST} {end}") for end in far]
    dots = [f'<circle class="{_kind(node)}" cx="{FIRST}" cy="{y[node.id]}" r="4.5"/>' for node in nodes]
    return "".join(parts + dots), FIRST + LANE * len(ends) + 12


def _path(node: LineageNode, words: str) -> str:
    return f'<path class="{_kind(node)}" d="{words}"/>'


def _row(node: LineageNode, height: int, indent: int) -> str:
    lines = (height - HEAD) // LINE
    told, made = [*facts_of(node)], execution_of(node)
    if node.type in FILES:
        told = [" · ".join(reversed(told))]
    digest = "" if node.type == "file" else f" <code>{_text(short(node.digest))}</code>"
    head = f'<span class="kind">{_text(node.type)}</span><b>{_title(node)}</b>{digest}'
    if lines < 1 and told:  # no line of its own: beside the heading
        head += f" <small>{_text(told[0])}</small>"
    wrapped = max(1, lines - len(told[1:]) - len(made))  # lines for the first fact
    shown = [_fact(fact, "made", 1) for fact in made]
    shown = ([_fact(fact, "told", 1 if number else wrapped) for number, fact in enumerate(told)] + shown)[
        : max(0, lines)
    ]
    style = f"height:{height}px;padding-left:{indent}px"
    return f'<div class="row {_kind(node)}" style="{style}"><div class="head">{head}</div>{"".join(shown)}</div>'


def _fact(fact: str, kind: str, lines: int) -> str:
    clamp = f' style="-webkit-line-clamp:{lines}"' if lines > 1 else ""
    many = " many" if lines > 1 else ""
    return f'<p class="{kind}{many}"{clamp} title="{_text(fact)}">{_text(fact)}</p>'


def _title(node: LineageNode) -> str:
    split = f"{node.metadata.get('split')}: " if node.type in FILES else ""
    return _text(f"{split}{node.title}") if node.title else ""


def _kind(node: LineageNode) -> str:
    return html.escape(re.sub(r"\W", "", node.type))


def _text(value: Any) -> str:
    """Escape a text for HTML, and characters that are not printable, such as those that change the text's direction."""
    text = printable(str(value))
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return html.escape(cut)
