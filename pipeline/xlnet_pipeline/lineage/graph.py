"""Finds the lineage graph of a run, a registered model or a directory, and verifies the artifacts in it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xlnet import provenance
from xlnet.data import objects
from xlnet.errors import CorruptArtifact, RunError, UserError, nearest
from xlnet.lineage.nodes import Lineage, build, short
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import CACHED, LATEST, Run
from xlnet_pipeline.targets.target import Target


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
        return build(subject, provenance.read(path), str(path), _places(target), {}, {})
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
    raise UserError(f"'{subject}' is not a run or model in '{target.home}', and no artifact directory{hint}")


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
            return build(subject, lineage, place, places, facts, cached)
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
            return build(subject, lineage, place, places, {}, {})
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
    return build(place, lineage, place, places, {}, {}) if lineage else None


def _read(place: str) -> dict[str, Any] | None:
    """Read the lineage inside the artifact in a directory. None if it has none."""
    if objects.is_remote(place):
        from xlnet_pipeline.targets import remote

        return remote.lineage_of(place)
    return provenance.read(place) if place and Path(place, provenance.LINEAGE).is_file() else None


def verify(lineage: Lineage) -> list[str]:
    """Return one line for each artifact whose location is known and whose content does not match its digest."""
    problems = []
    for node in lineage.nodes.values():
        if node.uri and node.type not in ("file", "files"):
            try:
                problem = changed(node.type, node.digest, objects.local_directory(node.uri))
            except (UserError, CorruptArtifact) as error:
                problem = str(error)
            if problem:
                problems.append(f"{node.type} {short(node.digest)}: {problem}")
    return problems


def changed(type: str, digest: str, directory: Path) -> str:
    """Describe how a directory differs from the artifact that it should hold; empty if it holds it.

    Raises:
        UserError: the directory has no ``lineage.json``.
        CorruptArtifact: its content does not match its own digest.
    """
    if not directory.is_dir():
        return f"gone from '{directory}'"
    found = provenance.verify(directory)
    return "" if found == digest else f"'{directory}' now holds another {type}, {short(found)}"
