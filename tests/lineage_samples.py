"""Hand-made artifacts with real lineage records, for the tests of lineage and its page."""

from pathlib import Path
from typing import Any

from xlnet import provenance

BREAKOUT = 'data/</script><script>document.title="broken"</script><!--.csv'
FOREIGN = "gs://bucket/" + "a-long-directory-name/" * 8 + "评论 \U0001f600\x1b[31m\n.csv"
REASON = "it does not beat the champion: accuracy 0.7525 against 0.8100 (version 1)"


def source(split: str, uri: str, number: int = 0) -> dict[str, Any]:
    return {"split": split, "uri": uri, "size": 1000 + number, "checksum": f"sha256:{number:064x}", "generation": ""}


def many_files(count: int) -> list[dict[str, Any]]:
    train = [source("train", f"data/part-{number:05d}.csv", number) for number in range(count)]
    return [*train, source("test", BREAKOUT, 7001), source("validation", FOREIGN, 7002)]


def write_artifacts(root: Path, files: list[dict[str, Any]] | None = None) -> Path:
    """A snapshot's dataset, its model, their evaluation and the registration; returns the registration."""
    files = many_files(2) if files is None else files
    snapshot = provenance.node(
        type="snapshot",
        digest=provenance.digest_json(files),
        step="snapshot",
        started=provenance.now(),
        parameters={},
        metadata={"files": files},
    )
    dataset = write(root, "dataset", "preprocess", [snapshot], {"train_rows": 67349, "rejects": 3})
    model = write(root, "model", "train", [dataset], {"validation_accuracy": 0.834507, "base_model": "tiny"})
    judged = {
        "rows": 1821,
        "primary_metric": "accuracy",
        "accuracy": 0.7525,
        "accuracy_low": 0.72,
        "accuracy_high": 0.78,
    }
    evaluation = write(root, "evaluation", "evaluate", [dataset, model], judged)
    facts = {"name": "reviews", "version": 2, "promoted": "false", "gate_decision": "kept", "reason": REASON}
    write(root, "registration", "register", [model, evaluation], facts)
    return root / "registration"


def write(root: Path, kind: str, step: str, inputs: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    directory = root / kind
    directory.mkdir(parents=True)
    (directory / "content.txt").write_text(f"{kind} {root.name}")
    return provenance.record(
        directory,
        type=kind,
        step=step,
        started="2026-11-23T16:00:00.000+00:00",
        parameters={"training": {"learning_rate": 0.001}} if step == "train" else {},
        metadata=facts,
        inputs=inputs,
    )
