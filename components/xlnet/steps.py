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
        if_made: artifacts that it reads only in runs where an optional step writes them.
        output: the artifact that it writes; empty: none.
        part_of: the step whose part of the recipe it takes; empty: its own.
        key: a parameter that stands for all inputs, because it is a digest of what the result depends on; empty: none.
        looped: whether a run does it many times, once for each shard.
        heavy: whether it runs on the requested machine; other steps run on small CPU machines.
        trains: whether it trains a model. Such a step writes checkpoints, and can run on several machines as one job.
        optional: the parameter of :func:`of_run` that says whether a run has this step; empty: every run has it.
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
    if_made: tuple[str, ...] = ()
    output: str = ""
    part_of: str = ""
    key: str = ""
    looped: bool = False
    heavy: bool = False
    trains: bool = False
    optional: str = ""
    cached: bool = True


SNAPSHOT = Step("snapshot", "Snapshot the input", "list and checksum the input", "xlnet.data.snapshot")

# The steps whose results are cached. The snapshot always runs, because it checks the input for changes.
KEPT = {
    step.name: step
    for step in (
        Step(
            "survey",
            "Survey the rows",
            "read all rows once, and divide them into shards",
            "xlnet.data.dividing",
            sections=("data",),
            given={"snapshot": "digest"},
            output="survey",
            part_of="preprocess",
            optional="fans_out",
        ),
        Step(
            "tokenise",
            "Tokenise a shard",
            "turn one shard's rows into token ids",
            "xlnet.data.shard_tokens",
            sections=("data",),
            inputs=("survey",),
            output="tokens",
            part_of="preprocess",
            key="shard",
            looped=True,
            optional="fans_out",
        ),
        Step(
            "preprocess",
            "Preprocess",
            "turn rows into token ids",
            "xlnet.data.preprocess",
            sections=("data",),
            given={"snapshot": "digest"},
            if_made=("survey", "tokens"),
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
            optional="pretrains",
        ),
        Step(
            "train",
            "Train XLNet",
            "train a model on a dataset",
            "xlnet.training.launch",
            sections=("model", "training", "pretraining"),
            given={"pretrained": "pretrained"},
            inputs=("dataset",),
            if_made=("base",),
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


def of_run(pretrains: bool, fans_out: bool = False) -> dict[str, Step]:
    """Return a run's steps by name, in order.

    Args:
        pretrains: whether it trains a language model on a corpus first.
        fans_out: whether its input is tokenised in shards, as tasks of their own.
    """
    asked = {"": True, "pretrains": pretrains, "fans_out": fans_out}
    return {name: step for name, step in STEPS.items() if asked[step.optional]}


def titled(title: str) -> str | None:
    """Return the name of the step with this title or name; None if there is none."""
    return next((step.name for step in STEPS.values() if title in (step.title, step.name)), None)


def before(name: str) -> tuple[str, ...]:
    """Return the names of the steps whose artifacts a step reads, including optional steps."""
    read = {*STEPS[name].inputs, *STEPS[name].if_made}
    return tuple(step.name for step in STEPS.values() if step.output and step.output in read)
