"""Builds the lineage graph of one artifact, back to the input files.

The source of truth is the ``lineage.json`` inside each artifact, which holds its inputs' lineage recursively. An
artifact that is reached twice, such as the dataset of a model and of its evaluation, becomes one node.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import CorruptArtifact

SHOWN_FILES = 8  # per split; a split with more files becomes one node
SHORT = 12  # digits of a digest shown to people


@dataclass(frozen=True)
class LineageNode:
    """An artifact, an input file, or many input files of one split."""

    id: str
    type: str  # registration, evaluation, model, dataset, tokens, survey, snapshot, file or files
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
    nodes: dict[str, LineageNode]
    run: Mapping[str, Any] = field(default_factory=dict)  # id, status and error of the requested run, if any

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Pairs (input, artifact) of ids."""
        return [(one, node.id) for node in self.nodes.values() for one in node.inputs]


def build(
    subject: str,
    lineage: Mapping[str, Any],
    directory: str,
    places: Mapping[str, str],
    run: Mapping[str, Any],
    cached: Mapping[str, tuple[bool, str]],
) -> Lineage:
    """Build the graph from a directory's lineage, merging repeated nodes. Each artifact precedes its inputs."""
    nodes: dict[str, LineageNode] = {}

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
        nodes[name] = LineageNode(name, kind, "", digest)  # it precedes its inputs, which are added next
        leaves = {leaf.id: leaf for leaf in _leaves(name, files)}
        nodes.update({id: leaf for id, leaf in leaves.items() if id not in nodes})
        inputs = dict.fromkeys([*(add(child, places) for child in one["inputs"]), *leaves])
        made = LineageNode(name, kind, _title(kind, metadata), digest, metadata, one["execution"], tuple(inputs))
        nodes[name] = replace(made, uri=places.get(digest, ""), cached=hit, reason=reason)
        return name

    try:
        where = directory if objects.is_remote(directory) else str(Path(directory).absolute())
        here = {lineage["artifact"]["digest"]: where}
        root = add(lineage, {**places, **here})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptArtifact(f"lineage of '{subject}' is damaged ({error!r}); run its step again") from None
    return Lineage(subject, root, nodes, run)


def _leaves(snapshot: str, files: list[dict[str, Any]]) -> Iterator[LineageNode]:
    """Yield one node for each input file, or one node for all files of a split with many files."""
    for split in dict.fromkeys(file["split"] for file in files):
        mine = [file for file in files if file["split"] == split]
        if len(mine) <= SHOWN_FILES:
            for file in mine:
                name = "file-" + provenance.digest_json([split, file["uri"], file["checksum"]])[7 : 7 + SHORT]
                title = str(file["uri"]).rstrip("/").rpartition("/")[2] or str(file["uri"])
                yield LineageNode(name, "file", title, str(file["checksum"]), file, uri=str(file["uri"]))
        else:
            digest = provenance.digest_json(mine)
            facts = {"split": split, "count": len(mine), "size": sum(int(file["size"]) for file in mine), "files": mine}
            yield LineageNode(f"files-{short(digest)}", "files", f"{len(mine)} files", digest, facts)


def short(digest: str) -> str:
    """Return the first digits of a digest, without its algorithm. A text that is no digest is hashed first."""
    digits = digest.partition(":")[2] or digest
    if len(digits) >= SHORT and digits.isalnum() and digits.isascii():
        return digits[:SHORT]
    return hashlib.sha256(digest.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]


def _title(kind: str, metadata: Mapping[str, Any]) -> str:
    if kind == "registration" and "name" in metadata:
        return f"{metadata['name']}:{metadata.get('version', '?')}"
    return ""
