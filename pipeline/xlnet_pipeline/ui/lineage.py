"""Pages about lineage across runs: a list of artifacts, and the graph around one artifact."""

import json
import re
import threading
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xlnet import provenance
from xlnet.errors import CorruptArtifact, RunError, UserError
from xlnet_pipeline.lineage import drawing, graph
from xlnet_pipeline.lineage.world import KINDS, Known, World, build
from xlnet_pipeline.ui import pages
from xlnet_pipeline.ui.pages import quoted
from xlnet_pipeline.ui.run import found as found_run
from xlnet_pipeline.ui.run import tab_page
from xlnet_pipeline.ui.site import LOCAL, Site, site_of

LISTED = 200  # maximum number of artifacts on a page
FILES = ("file", "files")
_VIEWS = {"all": "both", "up": "what it was made from", "down": "what was made from it"}
_lock = threading.Lock()
_built: dict[int, tuple[object, World]] = {}


def world(site: Site) -> World:
    """Return the graph of all local runs, read again when a run has changed."""
    rows = site.runs.rows()
    key = hash(tuple((row.id, row.status, row.digests) for row in rows))
    with _lock:
        kept = _built.get(id(site))
        if kept is None or kept[0] != key:
            _built.clear()
            kept = _built[id(site)] = (key, build((row.id, row.digests) for row in rows))
    return kept[1]


def listing(request: Request) -> Response:
    """List artifacts by their type."""
    known = world(site_of(request))
    kind, search = request.query_params.get("type", ""), request.query_params.get("search", "").strip()
    words = search.casefold().split()
    found = [
        node
        for node in known.nodes.values()
        if (not kind or node.type == kind)
        and all(word in f"{node.id} {node.title} {node.digest} {node.uri} {node.run}".casefold() for word in words)
    ]
    return pages.page(
        request,
        "lineage.html",
        title="Lineage",
        nodes=found[:LISTED],
        found=len(found),
        total=len(known.nodes),
        problems=known.problems,
        kinds=KINDS,
        kind=kind,
        search=search,
    )


def show(request: Request) -> Response:
    """Draw the graph around one artifact, with the facts of the chosen one."""
    site, asked = site_of(request), request.query_params
    known = world(site)
    root = known.find(request.path_params["node"])
    if root != request.path_params["node"]:
        return pages.redirect(f"/lineage/{quoted(root)}")
    view = asked.get("view", "all") if asked.get("view") in _VIEWS else "all"
    part = known.around(root, up=view != "down", down=view != "up")
    chosen = asked.get("node", "") if asked.get("node") in part.nodes else root
    every = "every" in asked
    shown = part if every else part.collapsed([root, chosen])
    return pages.page(
        request,
        "lineage_node.html",
        title=f"Lineage of {shown.nodes[root].title or root}",
        root=known.nodes[root],
        graph=draw(shown, root, chosen, request),
        count=len(part.nodes),
        drawn=len(shown.nodes),
        view=view,
        views=_VIEWS,
        every=every,
        zoom="zoom" in asked,
        **facts(known, known.nodes[chosen]),
        verified=verify(site, part) if "verify" in asked else None,
    )


def draw(shown: World, root: str, chosen: str, request: Request | None = None) -> Markup:
    """Draw a graph; each box is a link that shows the facts of its artifact beside the same graph."""
    boxes = [_box(node, chosen, request, root) for node in shown.nodes.values()]
    return drawing.draw(boxes, shown.edges(), f"From inputs to results, around {root}")


def _box(node: Known, chosen: str, request: Request | None, root: str) -> drawing.Box:
    lines = node.lines
    hint = "\n".join((" ".join(lines[:2]), *node.facts))
    link = f"/lineage/{quoted(root)}?node={quoted(node.id)}#facts"
    if request is not None:
        link = pages.with_query(request, node=node.id, verify=None) + "#facts"
    mark = " chosen" if node.id == chosen else ""
    return drawing.Box(node.id, lines, f"{node.type}{mark}", link, hint)


def facts(known: World, node: Known) -> dict[str, Any]:
    """Return what the page shows about one artifact: its facts, its neighbours, and its metadata."""
    children = [one for one in known.nodes.values() if node.id in one.inputs]
    metadata: dict[str, Any] = {}
    if node.uri and node.type not in FILES and "://" not in node.uri:
        try:
            metadata = provenance.read(node.uri)["artifact"]["metadata"]
        except (UserError, CorruptArtifact):
            metadata = {}
    metadata = {name: value for name, value in metadata.items() if not isinstance(value, dict | list)}
    parents = [known.nodes[one] for one in node.inputs if one in known.nodes]
    return {"node": node, "children": children, "parents": parents, "metadata": metadata}


def verify(site: Site, shown: World) -> list[tuple[Known, str]]:
    """Check artifacts against their digests; return each with a description of the problem, which is empty if none."""
    found = []
    for node in shown.nodes.values():
        if node.uri and node.type not in FILES and "://" not in node.uri:
            try:
                found.append((node, graph.changed(node.type, node.digest, site.inside(node.uri))))
            except (UserError, RunError, OSError) as error:
                found.append((node, str(error)))
    return found


def plain(shown: World) -> dict[str, Any]:
    """Return a graph as JSON."""
    nodes = [{name: value for name, value in vars(one).items() if name != "count"} for one in shown.nodes.values()]
    return {"nodes": nodes, "edges": shown.edges()}


def _part(request: Request) -> tuple[str, World]:
    known = world(site_of(request))
    root = known.find(request.path_params["node"])
    return root, known.around(root)


def graph_json(request: Request) -> Response:
    """Send the graph as JSON."""
    root, part = _part(request)
    return pages.download(json.dumps(plain(part), indent=1), f"{root}.json", "application/json")


def graph_svg(request: Request) -> Response:
    """Send the drawing as a self-contained file."""
    root, part = _part(request)
    return pages.download(standalone(draw(part.collapsed([root]), root, root)), f"{root}.svg", "image/svg+xml")


def standalone(svg: str) -> str:
    """Make a drawing self-contained: add its style, and remove the links to the server."""
    text = pages.environment().get_template("graph_style.css").render()
    head, _, rest = str(svg).partition(">")
    plain = re.sub(r"</?a\b[^>]*>", "", rest)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{text}</style>{plain}'


def page_file(request: Request) -> Response:
    """Send the self-contained page that ``xlnet-pipeline lineage --html`` writes."""
    from xlnet_pipeline.lineage import rendering

    site = site_of(request)
    known = world(site)
    node = known.nodes[known.find(request.path_params["node"])]
    if not node.uri or node.type in FILES:
        raise UserError(f"'{node.id}' is an input file; choose an artifact that was made from it")
    places = {one.digest: one.uri for one in known.nodes.values() if one.uri}
    found = graph.of_directory(str(site.inside(node.uri)), places)
    if found is None:
        raise UserError(f"'{node.uri}' has no lineage.json any more; run the recipe again")
    return pages.download(rendering.to_html(found), f"{node.id}.html", "text/html")


def of_run(request: Request) -> Response:
    """Show the lineage of the last artifact of a run."""
    site, run = site_of(request), found_run(request)
    known, problem = world(site), ""
    if run.target not in (LOCAL, "docker"):
        from xlnet_pipeline.lineage import world as worlds

        remote = graph.of_target(run.id, site.target(run.target))
        known = World({node.id: worlds.known(node) for node in remote.nodes.values()})
    mine = {one.digest for one in run.artifacts if one.digest}
    ours = [node for node in known.nodes.values() if node.digest in mine]
    root = min(ours, key=lambda node: KINDS.index(node.type)) if ours else None
    if root is None:
        problem = "This run has left no artifact" + ("." if run.ended else " yet.")
        return tab_page(request, run, "lineage", graph=None, root=None, problem=problem)
    part = known.around(root.id, down=False)
    drawn = draw(part.collapsed([root.id]), root.id, root.id)
    return tab_page(request, run, "lineage", graph=drawn, root=root, problem="")


ROUTES = [
    Route("/lineage", listing),
    Route("/lineage/{node}", show),
    Route("/lineage/{node}/graph.json", graph_json),
    Route("/lineage/{node}/graph.svg", graph_svg),
    Route("/lineage/{node}/page.html", page_file),
    Route("/runs/{run}/lineage", of_run),
]
