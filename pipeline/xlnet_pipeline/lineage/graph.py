"""Lineage: the graph of artifacts that a run, a registered model or a directory came from, back to the input files.

The source of truth is the ``lineage.json`` inside each artifact, which holds its inputs' lineage recursively. An
artifact that is reached twice, such as the dataset of a model and of its evaluation, is one node here.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import CorruptArtifact, RunError, UserError, nearest
from xlnet_pipeline.targets import remote
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import CACHED, LATEST, Run
from xlnet_pipeline.targets.target import Target

SCHEMA = 1
SHOWN_FILES = 8  # of one split; more become one node
SHORT = 12  # digits of a digest that a person reads


@dataclass(frozen=True)
class Node:
    """An artifact, an input file, or many input files of one split."""

    id: str
    type: str  # registration, evaluation, model, dataset, snapshot, file or files
    title: str  # as a person calls it; may be empty
    digest: str  # of the content; of a file, its checksum
    metadata: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)  # what made it; empty for files
    inputs: tuple[str, ...] = ()  # ids
    uri: str = ""  # where it is, as far as known
    cached: bool | None = None  # in the run that was asked for; None where no run was
    reason: str = ""  # why that run made it again, or where the kept result was from


@dataclass(frozen=True)
class Lineage:
    """A graph without cycles. ``nodes`` by id, the newest artifact first; edges run from input to artifact."""

    subject: str
    root: str
    nodes: dict[str, Node]
    run: Mapping[str, Any] = field(default_factory=dict)  # id, status and error, where a run was asked for

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Pairs (input, artifact) of ids."""
        return [(one, node.id) for node in self.nodes.values() for one in node.inputs]


def collect(subject: str, home: str | Path | None = None) -> Lineage:
    """Find what is asked for and read its lineage.

    Args:
        subject: a run (id, or a unique part of it), a registered model (``NAME``, ``NAME:3``, ``NAME@alias``), or
            an artifact's directory.
        home: the state directory; None: ``XLNET_PIPELINE_HOME``, else ``.xlnet-pipeline``.

    Raises:
        UserError: there is nothing of that name, or it has no artifact yet.
        RunError: what the registry names is gone.
        CorruptArtifact: a ``lineage.json`` is damaged.
    """
    target = LocalTarget(home)
    if "://" in subject:
        raise UserError(f"'{subject}' is a URI; copy the artifact here and name its directory")
    path = Path(subject)
    if path.name == provenance.LINEAGE:
        path = path.parent
    if (path / provenance.LINEAGE).is_file():
        return _graph(subject, provenance.read(path), str(path), _places(target), {}, {})
    if (path / "run.json").is_file() and path.parent.name == "runs":
        target = LocalTarget(path.absolute().parent.parent)
        return _of_run(subject, target.status(path.absolute().name), target)
    if path.is_dir() and ("/" in subject or subject in (".", "..")):
        raise UserError(f"'{subject}' has no {provenance.LINEAGE}; name an artifact directory that a step wrote")
    if "/" in subject:
        raise UserError(f"directory '{subject}' does not exist; name an artifact directory, a run or a model")
    if ":" in subject or "@" in subject:
        return _of_model(subject, target)
    return _of_name(subject, target)


def _of_name(subject: str, target: LocalTarget) -> Lineage:
    """A run's id or a part of it, else a model's name."""
    from xlnet.registry import open_registry

    runs = [run.id for run in target.runs()]
    matches = [run for run in runs if run.startswith(subject) or run.endswith(subject)]
    if subject and (matches or (subject == LATEST and runs)):
        return _of_run(subject, target.status(subject), target)
    models = open_registry(home=target.home).names()
    if subject in models:
        return _of_model(subject, target)
    known = [*models, *runs]
    hint = nearest(subject, known) or (f"; the latest run is '{runs[0]}'" if runs else "; there are no runs yet")
    raise UserError(f"'{subject}' is no run or model in '{target.home}', and no artifact directory{hint}")


def of_target(run: str, target: Target) -> Lineage:
    """The lineage of a run on a remote target, from the artifacts in its bucket.

    Raises:
        UserError: there is no such run, or it has no artifact yet.
    """
    return _of_run(run, target.status(run), target)


def _of_run(subject: str, run: Run, target: Target) -> Lineage:
    facts = {"id": run.id, "status": run.status, "error": asdict(run.error) if run.error else None}
    cached = {}
    for step in run.steps:
        values = step.outputs.values()
        digests = [value["digest"] for value in values if isinstance(value, dict) and value.get("digest")]
        if step.name == "snapshot" and isinstance(step.outputs.get("digest"), str):
            digests.append(step.outputs["digest"])
        for digest in digests:
            cached[digest] = (step.status == CACHED, step.reason or "")
    places = _places(target) if isinstance(target, LocalTarget) else dict(_artifacts(run))
    for _, place in _artifacts(run):
        if lineage := _read(place):
            return _graph(subject, lineage, place, places, facts, cached)
    why = f": {run.error.message}" if run.error else ""
    raise UserError(f"run '{run.id}' is {run.status} and left no artifact{why}")


def _artifacts(run: Run) -> Iterator[tuple[str, str]]:
    """(digest, directory) of what the run's steps put out, the furthest step first."""
    for one in reversed(run.artifacts):
        yield one.digest or "", one.uri


def _of_model(subject: str, target: LocalTarget) -> Lineage:
    from xlnet.registry import open_registry

    version = open_registry(home=target.home).find(subject)
    for place in (version.registration_uri, version.model_uri):
        if lineage := _read(place):
            places = _places(target)
            for name in ("model", "evaluation"):
                if uri := version.tags.get(f"{name}_uri"):
                    places[version.tags.get(f"{name}_digest", "")] = uri
            return _graph(subject, lineage, place, places, {}, {})
    raise RunError(f"the artifacts of '{version.name}:{version.version}' are gone from '{version.registration_uri}'")


def _places(target: LocalTarget) -> dict[str, str]:
    """Digest → directory of every artifact that a run's record names, the newest run's last."""
    return {digest: place for run in reversed(target.runs()) for digest, place in _artifacts(run)}


def _read(place: str) -> dict[str, Any] | None:
    """The lineage inside the artifact at a place; None if there is none."""
    if objects.is_remote(place):
        return remote.lineage_of(place)
    return provenance.read(place) if place and Path(place, provenance.LINEAGE).is_file() else None


def _graph(
    subject: str,
    lineage: Mapping[str, Any],
    directory: str,
    places: Mapping[str, str],
    run: Mapping[str, Any],
    cached: Mapping[str, tuple[bool, str]],
) -> Lineage:
    """Merge the repeated nodes of a directory's lineage. An artifact comes before its inputs in ``nodes``."""
    nodes: dict[str, Node] = {}

    def add(one: Mapping[str, Any], places: Mapping[str, str]) -> str:
        artifact = one["artifact"]
        kind, digest = str(artifact["type"]), str(artifact["digest"])
        name = f"{kind}-{short(digest)}"
        if name in nodes:
            return name
        metadata = dict(artifact.get("metadata") or {})
        files = metadata.pop("files", []) if kind == "snapshot" else []
        if kind == "snapshot":
            metadata = {"files": len(files), "size": sum(int(file.get("size") or 0) for file in files)} | metadata
        hit, reason = cached.get(digest, (None, ""))
        nodes[name] = Node(name, kind, "", digest)  # keeps the place in the order
        leaves = [_keep(nodes, leaf) for leaf in _leaves(name, files)]
        inputs = dict.fromkeys([add(child, places) for child in one["inputs"]] + leaves)
        nodes[name] = Node(
            name,
            kind,
            _title(kind, metadata),
            digest,
            metadata,
            one["execution"],
            tuple(inputs),
            places.get(digest, ""),
            hit,
            reason,
        )
        return name

    try:
        where = directory if objects.is_remote(directory) else str(Path(directory).absolute())
        here = {lineage["artifact"]["digest"]: where}
        root = add(lineage, {**places, **here})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptArtifact(f"lineage of '{subject}' is damaged ({error!r}); run its step again") from None
    return Lineage(subject, root, nodes, run)


def _keep(nodes: dict[str, Node], node: Node) -> str:
    nodes.setdefault(node.id, node)
    return node.id


def _leaves(snapshot: str, files: list[dict[str, Any]]) -> Iterator[Node]:
    """A node for each input file, or one for all files of a split that has many."""
    for split in dict.fromkeys(file["split"] for file in files):
        mine = [file for file in files if file["split"] == split]
        if len(mine) <= SHOWN_FILES:
            for file in mine:
                name = "file-" + provenance.digest_json([split, file["uri"], file["checksum"]])[7 : 7 + SHORT]
                title = str(file["uri"]).rstrip("/").rpartition("/")[2] or str(file["uri"])
                yield Node(name, "file", title, str(file["checksum"]), file, uri=str(file["uri"]))
        else:
            digest = provenance.digest_json(mine)
            facts = {"split": split, "count": len(mine), "size": sum(int(file["size"]) for file in mine), "files": mine}
            yield Node(f"files-{short(digest)}", "files", f"{len(mine)} files", digest, facts)


def short(digest: str) -> str:
    """The first digits of a digest, without its algorithm; of anything else, of its own digest."""
    digits = digest.partition(":")[2] or digest
    if len(digits) >= SHORT and digits.isalnum() and digits.isascii():
        return digits[:SHORT]
    return hashlib.sha256(digest.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]


def _title(kind: str, metadata: Mapping[str, Any]) -> str:
    if kind == "registration" and "name" in metadata:
        return f"{metadata['name']}:{metadata.get('version', '?')}"
    return ""


def verify(lineage: Lineage) -> list[str]:
    """One line for each artifact whose place is known and whose bytes are not, or no longer, those of its digest."""
    problems = []
    for node in lineage.nodes.values():
        if not node.uri or node.type in ("file", "files"):
            continue
        try:
            directory = objects.local_directory(node.uri)
            if not directory.is_dir():
                problems.append(f"{node.type} {short(node.digest)}: gone from '{node.uri}'")
                continue
            found = provenance.verify(directory)
        except (UserError, CorruptArtifact) as error:
            problems.append(f"{node.type} {short(node.digest)}: {error}")
            continue
        if found != node.digest:
            problems.append(
                f"{node.type} {short(node.digest)}: '{node.uri}' now holds another {node.type}, {short(found)}"
            )
    return problems
