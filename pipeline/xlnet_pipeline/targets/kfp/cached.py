"""Finds a run's artifacts: those of its own steps, and those of earlier runs that its cached steps reuse."""

from collections.abc import Callable

from xlnet.data import index
from xlnet_pipeline.targets import record, remote
from xlnet_pipeline.targets.record import Run

NOT_INDEXED = "the same as in an earlier run, which the index does not list"


def with_artifacts(run: Run, run_id: str, root: str, name: Callable[[str], str]) -> Run:
    """Fill in the artifacts of a run's steps. A cached step gets the artifact that it reuses, and says whose it is.

    Args:
        run: the run's record, without artifacts.
        run_id: the server's id of the run.
        root: the run's pipeline root.
        name: maps the server's id of another run to the name that we show.
    """
    places = remote.artifact_places(root, run_id)
    cached = [step for step in run.steps if step.status == record.CACHED]
    base = f"{root.rstrip('/')}/{index.FOLDER}"
    keys = index.keys_of(base, run_id) if cached else {}
    names: dict[str, str] = {run_id: run.id}
    for step in cached:
        step.reason = step.reason if step.iterations else NOT_INDEXED
        for work in index.done(base, keys[step.name]) if step.name in keys else ():
            if work.run != run_id and remote.lineage_of(work.uri) is not None:
                if work.run not in names:
                    names[work.run] = name(work.run)
                step.reason, places[step.name] = f"same as in run {names[work.run]}", work.uri
                break
    return remote.with_artifacts(run, places)
