"""Merges the lineage of many runs into one graph: from each file to the models made from it, and back.

A node holds only what drawings show. The artifact's own ``lineage.json`` has the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from xlnet.errors import RunError, UserError
from xlnet.lineage.facts import execution_of, facts_of
from xlnet.lineage.nodes import LineageNode
from xlnet_pipeline.lineage import graph

MANY = 8  # if a node has more similar neighbours, they are drawn as one
KINDS = ("registration", "evaluation", "model", "dataset", "tokens", "survey", "snapshot", "file", "files")


@dataclass(frozen=True)
class Known:
    """An artifact or input file, with the facts that pages show."""

    id: str
    type: str
    title: str
    digest: str
    facts: tuple[str, ...]  # the most important first
    inputs: tuple[str, ...]
    uri: str = ""
    run: str = ""
    count: int = 1  # number of artifacts that this node stands for

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of its box in a drawing: its type, its name, and its most important fact if there is one."""
        is_file = self.type in ("file", "files") and self.count == 1
        told = (self.facts or ("",))[-1 if is_file else 0].split(" · ")[0]
        return (self.type, self.title or self.digest.partition(":")[2][:12] or self.id, *([told] if told else []))


@dataclass(frozen=True)
class World:
    """All artifacts of the local runs. ``problems`` has a line for each artifact whose lineage cannot be read."""

    nodes: dict[str, Known] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def edges(self) -> list[tuple[str, str]]:
        """Pairs (input, artifact) of ids."""
        return [(one, node.id) for node in self.nodes.values() for one in node.inputs if one in self.nodes]

    def around(self, name: str, up: bool = True, down: bool = True) -> "World":
        """Keep an artifact, what it was made from (``up``), and what was made from it (``down``)."""
        kept = {name}
        after: dict[str, list[str]] = {}
        for start, end in self.edges():
            after.setdefault(start, []).append(end)
        for follow in [lambda one: self.nodes[one].inputs] * up + [lambda one: after.get(one, [])] * down:
            waiting = [name]
            seen = {name}
            while waiting:
                near = [one for one in follow(waiting.pop()) if one in self.nodes and one not in seen]
                seen.update(near)
                waiting += near
            kept |= seen
        return World({one: node for one, node in self.nodes.items() if one in kept}, self.problems)

    def find(self, subject: str) -> str:
        """Return the id of the node that a text names: an id, a digest or its beginning, a model's ``NAME:VERSION``.

        Raises:
            UserError: no node matches, or several do.
        """
        if subject in self.nodes:
            return subject
        wanted = subject.removeprefix("sha256:")
        found = [
            node.id
            for node in self.nodes.values()
            if node.title == subject or (len(wanted) >= 6 and node.digest.removeprefix("sha256:").startswith(wanted))
        ]
        if len(found) == 1:
            return found[0]
        what = "could be " + ", ".join(found[:5]) if found else "is unknown: none of the runs here used or made it"
        raise UserError(f"artifact '{subject}' {what}; /lineage lists all artifacts")

    def collapsed(self, kept: Iterable[str] = ()) -> "World":
        """Merge many artifacts of one type with equal neighbours into one node, except those in ``kept``."""
        nodes, stay = dict(self.nodes), set(kept)
        while True:
            children: dict[str, set[str]] = {}
            for node in nodes.values():
                for one in node.inputs:
                    children.setdefault(one, set()).add(node.id)
            groups: dict[tuple[object, ...], list[str]] = {}
            for node in nodes.values():
                if node.id not in stay:
                    ends = frozenset(children.get(node.id, ()))
                    key = (node.type, frozenset(node.inputs), ends if len(ends) > 1 or not node.inputs else ())
                    groups.setdefault(key, []).append(node.id)
            large = [names for names in groups.values() if len(names) > MANY]
            if not large:
                return World(nodes, self.problems)
            nodes = _merged(nodes, large)


def build(runs: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> World:
    """Read the lineage of runs.

    Args:
        runs: for each run, the newest first: its id, and (digest, directory) of its artifacts, the last step's first.
    """
    listed = [(name, list(artifacts)) for name, artifacts in runs]
    places: dict[str, str] = {}
    for _, artifacts in reversed(listed):
        places.update(artifacts)
    nodes: dict[str, Known] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for name, artifacts in listed:
        for digest, place in artifacts:
            if "://" in place:
                continue
            if digest in seen:
                break
            try:
                found = graph.of_directory(place, places)
            except (RunError, UserError, OSError) as error:
                problems.append(f"run {name}: {error}")
                continue
            if found:
                seen.add(digest)
                for node in found.nodes.values():
                    nodes.setdefault(node.id, known(node))
                break
    return World(nodes, tuple(problems))


def known(node: LineageNode) -> Known:
    """Convert a lineage node to one of this graph."""
    run = str(node.execution.get("run") or "")
    facts = (*facts_of(node), *execution_of(node))
    return Known(node.id, node.type, node.title, node.digest, facts, node.inputs, node.uri, run)


def _merged(nodes: Mapping[str, Known], groups: list[list[str]]) -> dict[str, Known]:
    """Replace each group by one node that stands for it."""
    stand: dict[str, str] = {}
    made: dict[str, Known] = {}
    for names in groups:
        first = nodes[names[0]]
        count = sum(nodes[name].count for name in names)
        made[first.id] = replace(first, title=f"{count} of type {first.type}", facts=(), count=count, uri="", run="")
        stand |= dict.fromkeys(names, first.id)
    kept = {name: made.get(name, node) for name, node in nodes.items() if stand.get(name, name) == name}
    return {
        name: replace(node, inputs=tuple(dict.fromkeys(stand.get(one, one) for one in node.inputs)))
        for name, node in kept.items()
    }
