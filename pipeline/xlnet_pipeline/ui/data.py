"""Pages about datasets: their cards, their rejected rows, and the differences between two datasets."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet.errors import Missing, RunError
from xlnet.evaluation import charts
from xlnet_pipeline.ui import pages
from xlnet_pipeline.ui.lineage import world
from xlnet_pipeline.ui.site import Site, site_of

REJECTS = 200  # maximum number of rejected rows that a page shows
Card = dict[str, Any]


def datasets(site: Site) -> dict[str, tuple[str, str, str]]:
    """Return node id → (directory, run, facts) of every dataset with a known directory, the newest first."""
    return {
        node.id: (node.uri, node.run, node.facts[0] if node.facts else "")
        for node in world(site).nodes.values()
        if node.type == "dataset" and node.uri
    }


def read(site: Site, name: str) -> tuple[Card, Path]:
    """Return a dataset's card, and its directory.

    Raises:
        Missing: the dataset is unknown.
        RunError: the card is damaged.
    """
    known = datasets(site)
    if name not in known:
        raise Missing(f"dataset '{name}' is unknown; /data lists all")
    folder = site.inside(known[name][0])
    try:
        card: Card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{folder / 'card.json'}' cannot be read ({error}); run the recipe again") from None
    return card, folder


def listing(request: Request) -> Response:
    """List the datasets."""
    site = site_of(request)
    rows = {row.id: row for row in site.runs.rows()}
    return pages.page(request, "data.html", title="Data", datasets=datasets(site), rows=rows)


def show(request: Request) -> Response:
    """Show a dataset's card, and how another dataset differs from it."""
    site, name = site_of(request), request.path_params["dataset"]
    card, folder = read(site, name)
    other = request.query_params.get("against", "")
    known = datasets(site)
    return pages.page(
        request,
        "dataset.html",
        title=f"Dataset {name}",
        name=name,
        card=card,
        run=known[name][1],
        rejects=rejects(folder),
        lengths=Markup(_lengths(card)),
        others=[one for one in known if one != name],
        against=other,
        difference=differ(card, read(site, other)[0]) if other else None,
    )


def rejects(folder: Path) -> list[dict[str, Any]]:
    """Return the first rows that could not be used: file, line and reason."""
    found = []
    try:
        with (folder / "rejects.jsonl").open(encoding="utf-8", errors="replace") as file:
            for line in islice(file, REJECTS):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
    except OSError:
        return []
    return [one for one in found if isinstance(one, dict)]


def differ(card: Card, other: Card) -> dict[str, list[tuple[str, str, str]]]:
    """Compare two cards.

    Returns:
        ``files``: (file, here, there) for each file that only one dataset has or whose bytes differ; ``figures``:
        (name, here, there) for each count that differs.
    """
    here, there = (
        {(file["split"], file["uri"]): str(file["checksum"]) for file in one.get("files", [])} for one in (card, other)
    )
    files = [
        (
            f"{split}: {uri}",
            pages.short(here.get((split, uri), "")) or "–",
            pages.short(there.get((split, uri), "")) or "–",
        )
        for split, uri in sorted({*here, *there})
        if here.get((split, uri)) != there.get((split, uri))
    ]
    one, two = _figures(card), _figures(other)
    names = list(dict.fromkeys([*one, *two]))
    figures = [(name, one.get(name, "–"), two.get(name, "–")) for name in names if one.get(name) != two.get(name)]
    return {"files": files, "figures": figures}


def _figures(card: Card) -> dict[str, str]:
    found = {"classes": ", ".join(map(str, card.get("classes") or [])), "longest row": str(card.get("max_length"))}
    for name, split in card.get("splits", {}).items():
        for what in ("rows", "tokens", "truncated", "unknown_tokens"):
            if what in split:
                found[f"{name}: {what.replace('_', ' ')}"] = f"{split[what]:,}"
        for label, count in (split.get("classes") or {}).items():
            found[f"{name}: rows of class {label}"] = f"{count:,}"
    rejected = card.get("rejects", {})
    found["rejects"] = f"{rejected.get('total', 0):,}"
    found |= {f"rejects: {reason}": f"{count:,}" for reason, count in rejected.get("by_reason", {}).items()}
    return found | {f"repeated: {name}": f"{count:,}" for name, count in card.get("duplicates", {}).items()}


def _lengths(card: Card) -> str:
    histogram = card.get("splits", {}).get("train", {}).get("length_histogram") or []
    heights = [(f"≤{bound}", float(count)) for bound, count in histogram]
    return charts.bars("Length of the training texts", "tokens", "rows", heights)


ROUTES = [Route("/data", listing), Route("/data/{dataset}", show)]
