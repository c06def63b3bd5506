"""The table of the pipeline's steps. The DAG, caches, placement, plans and pages are made from it."""

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
        given: its other parameters: name → the output of the snapshot step that it receives.
        inputs: artifacts that it reads, each named as the :attr:`output` of another step.
        base: an artifact that it reads only in runs where an optional step writes it; empty: none.
        output: the artifact that it writes; empty: none.
        heavy: whether it runs on the requested machine; other steps run on small CPU machines.
        trains: whether it trains a model. Such a step writes checkpoints, and can run on several machines as one job.
        optional: whether only runs whose recipe asks for it have this step.
        cached: whether a backend may take its result from its cache. If not, it gets the whole recipe, which saves an
            edge from the snapshot step in the backends' drawings.
    """

    name: str
    title: str
    summary: str
    module: str
    sections: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    inputs: tuple[str, ...] = ()
    base: str = ""
    output: str = ""
    heavy: bool = False
    trains: bool = False
    optional: bool = False
    cached: bool = True


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
            "pretrain",
            "Pretrain XLNet",
            "train a language model on a corpus, for the train step to continue",
            "xlnet.training.pretraining",
            sections=("model", "pretraining"),
            given={"pretrained": "pretrained"},
            inputs=("dataset",),
            output="base",
            heavy=True,
            trains=True,
            optional=True,
        ),
        Step(
            "train",
            "Train XLNet",
            "train a model on a dataset",
            "xlnet.training.launch",
            sections=("model", "training", "pretraining"),
            given={"pretrained": "pretrained"},
            inputs=("dataset",),
            base="base",
            output="model",
            heavy=True,
            trains=True,
        ),
        Step(
            "evaluate",
            "Evaluate",
            "evaluate a model on the test split",
            "xlnet.evaluation.evaluate",
            sections=("evaluation",),
            inputs=("dataset", "model"),
            output="evaluation",
            heavy=True,
        ),
        Step(
            "register",
            "Register",
            "register a model, and make it champion if it beats the current one",
            "xlnet.registry.register",
            sections=("evaluation", "registry"),
            inputs=("dataset", "model", "evaluation"),
            output="registration",
            cached=False,  # the result depends on the registry, which a backend's cache does not see
        ),
    )
}
STEPS = {SNAPSHOT.name: SNAPSHOT, **KEPT}


def of_run(pretrains: bool) -> dict[str, Step]:
    """Return a run's steps by name, in order. ``pretrains`` says whether its recipe asks for the optional step."""
    return {name: step for name, step in STEPS.items() if pretrains or not step.optional}


def titled(title: str) -> str | None:
    """Return the name of the step with this title or name; None if there is none."""
    return next((step.name for step in STEPS.values() if title in (step.title, step.name)), None)


def before(name: str) -> tuple[str, ...]:
    """Return the names of the steps whose artifacts a step reads, including the optional step."""
    read = {*STEPS[name].inputs, STEPS[name].base}
    return tuple(step.name for step in STEPS.values() if step.output and step.output in read)
