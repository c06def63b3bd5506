"""Builds the lineage graph of a run, a registered model or a directory, back to the input files.

The source of truth is the ``lineage.json`` inside each artifact, which holds its inputs' lineage recursively. An
artifact that is reached twice, such as the dataset of a model and of its evaluation, becomes one node.
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
SHOWN_FILES = 8  # per split; a split with more files becomes one node
SHORT = 12  # digits of a digest shown to people


@dataclass(frozen=True)
class Node:
    """An artifact, an input file, or many input files of one split."""

    id: str
    type: str  # registration, evaluation, model, dataset, snapshot, file or files
    title: str  # name shown to people; may be empty
    digest: str  # of the content; a file's checksum
    metadata: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)  # the step that made it; empty for files
    inputs: tuple[str, ...] = ()  # ids
    uri: str = ""  # its location; empty if unknown
    cached: bool | None = None  # whether the requested run took it from the cache; None without a run
    reason: str = ""  # why that run made it again, or which run the cached result is from


@dataclass(frozen=True)
class Lineage:
    """An acyclic graph. ``nodes`` maps ids to nodes, the newest artifact first; edges go from input to artifact."""

    subject: str
    root: str
    nodes: dict[str, Node]
    run: Mapping[str, Any] = field(default_factory=dict)  # id, status and error of the requested run, if any

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Pairs (input, artifact) of ids."""
        return [(one, node.id) for node in self.nodes.values() for one in node.inputs]


def collect(subject: str, home: str | Path | None = None) -> Lineage:
    """Find the subject and read its lineage.

    Args:
        subject: a run (id, or a unique part of it), a registered model (``NAME``, ``NAME:3``, ``NAME@alias``), or
            an artifact's directory.
        home: the state directory; None: ``XLNET_PIPELINE_HOME``, else ``.xlnet-pipeline``.

    Raises:
        UserError: nothing has that name, or it has no artifact yet.
            RunError: the files that the registry names are gone.
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
    """Read the lineage of a run (by id or a part of it), else of a model."""
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
    """Read the lineage of a run on a remote target from the artifacts in its bucket.

    Raises:
        UserError: the run does not exist, or has no artifact yet.
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
    """Yield (digest, directory) of the artifacts of the run's steps, the last step first."""
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
    """Map the digest of every artifact named in a run record to its directory. Newer runs override older ones."""
    return {digest: place for run in reversed(target.runs()) for digest, place in _artifacts(run)}


def of_directory(place: str, places: Mapping[str, str]) -> Lineage | None:
    """Build the graph of one artifact. None if its directory has no lineage.

    Args:
        place: the artifact's directory.
        places: digest → directory, of the other artifacts whose directories are known.

    Raises:
        CorruptArtifact: its ``lineage.json`` is damaged.
    """
    lineage = _read(place)
    return _graph(place, lineage, place, places, {}, {}) if lineage else None


def _read(place: str) -> dict[str, Any] | None:
    """Read the lineage inside the artifact in a directory. None if it has none."""
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
    """Build the graph from a directory's lineage, merging repeated nodes. Each artifact precedes its inputs."""
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
        nodes[name] = Node(name, kind, "", digest)  # reserves its place in the order
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
    """Yield one node for each input file, or one node for all files of a split with many files."""
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
    """Return the first digits of a digest, without its algorithm. Other text is hashed first."""
    digits = digest.partition(":")[2] or digest
    if len(digits) >= SHORT and digits.isalnum() and digits.isascii():
        return digits[:SHORT]
    return hashlib.sha256(digest.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]


def _title(kind: str, metadata: Mapping[str, Any]) -> str:
    if kind == "registration" and "name" in metadata:
        return f"{metadata['name']}:{metadata.get('version', '?')}"
    return ""


def verify(lineage: Lineage) -> list[str]:
    """Return one line for each artifact whose location is known and whose content does not match its digest."""
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
