"""The table of the pipeline's steps, from which all others read: the DAG, caches, placement, plans and pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: its name in commands and records.
        title: its name on the backends' pages.
        summary: what it does, in a few words.
        module: module of its function; the code fingerprint starts there.
        sections: the parts of the recipe that its result depends on.
        given: what it is told beside these: parameter → the output of the snapshot step that it is.
        inputs: artifacts that it reads, each named as the :attr:`output` of another step.
        output: the artifact that it writes; empty: none.
        heavy: whether it runs on the requested machine; other steps run on small CPU machines.
    """

    name: str
    title: str
    summary: str
    module: str
    sections: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inputs: tuple[str, ...] = ()
    output: str = ""
    heavy: bool = False


SNAPSHOT = Step("snapshot", "Snapshot the input", "list and checksum the input", "xlnet.data.snapshot")

# The steps whose results are cached. The snapshot always runs, because it checks the input for changes.
KEPT = {
    step.name: step
    for step in (
        Step(
            "preprocess",
            "Preprocess",
            "turn rows into token ids",
            "xlnet.data.preprocess",
            sections=("data",),
            given={"snapshot": "digest"},
            output="dataset",
        ),
        Step(
            "train",
            "Train XLNet",
            "train a model on a dataset",
            "xlnet.training.launch",
            sections=("model", "training", "pretraining"),
            given={"pretrained": "pretrained"},
            inputs=("dataset",),
            output="model",
            heavy=True,
        ),
        Step(
            "evaluate",
            "Evaluate",
            "judge a model on the test split",
            "xlnet.evaluation.evaluate",
            sections=("evaluation",),
            inputs=("dataset", "model"),
            output="evaluation",
            heavy=True,
        ),
        Step(
            "register",
            "Register",
            "register a model, as champion if it beats the present one",
            "xlnet.registry.register",
            sections=("evaluation", "registry"),
            inputs=("dataset", "model", "evaluation"),
            output="registration",
        ),
    )
}
STEPS = {SNAPSHOT.name: SNAPSHOT, **KEPT}


def titled(title: str) -> str | None:
    """The name of the step that a backend calls by its title, or by its name; None: there is none."""
    return next((step.name for step in STEPS.values() if title in (step.title, step.name)), None)


def before(name: str) -> tuple[str, ...]:
    """Return the names of the steps whose artifacts a step reads."""
    return tuple(step.name for step in STEPS.values() if step.output and step.output in STEPS[name].inputs)
