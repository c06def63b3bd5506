"""The pipeline, from top to bottom: snapshot → preprocess → train → evaluate → register."""

import re
from collections.abc import Mapping
from pathlib import Path

from kfp import compiler, dsl

from xlnet import provenance
from xlnet.errors import UserError
from xlnet.recipe import STEP_SECTIONS
from xlnet_steps import steps

NAME = "xlnet"

_PINNED = re.compile(r"[^\s@]+@(sha256:[0-9a-f]{64})")


def build(image: str | None = None, code: Mapping[str, str] | None = None) -> dsl.base_component.BaseComponent:
    """Return the pipeline; its one parameter is the recipe's JSON.

    Args:
        image: ``REGISTRY/NAME@sha256:…`` for the steps to run in; None: a placeholder, for the local target.
        code: step → identity of its code, part of every cache key; None: the image's digest, or without an image
            the fingerprints of the installed sources.

    Raises:
        UserError: the image is not pinned by its digest, so that a cache could not see that it changed.
    """
    digest = _digest(image) if image else ""
    code = code or {step: digest or provenance.code_fingerprint(step) for step in STEP_SECTIONS}

    @dsl.pipeline(name=NAME, description="Train, evaluate and register XLNet on your own text")
    def xlnet(recipe: str) -> None:
        snapshot = steps.snapshot(recipe=recipe).set_caching_options(False)
        part = snapshot.outputs
        preprocess = steps.preprocess(recipe=part["preprocess"], snapshot=part["digest"], code=code["preprocess"])
        dataset = preprocess.outputs["dataset"]
        train = steps.train(recipe=part["train"], pretrained=part["pretrained"], code=code["train"], dataset=dataset)
        model = train.outputs["model"]
        evaluate = steps.evaluate(recipe=part["evaluate"], code=code["evaluate"], dataset=dataset, model=model)
        evaluation = evaluate.outputs["evaluation"]
        register = steps.register(
            recipe=part["register"], code=code["register"], dataset=dataset, model=model, evaluation=evaluation
        )
        for task, title in (
            (snapshot, "Snapshot the input"),
            (preprocess, "Preprocess"),
            (train, "Train XLNet"),
            (evaluate, "Evaluate"),
            (register, "Register"),
        ):
            task.set_display_name(title)
            if image:
                task.set_container_image(image).set_env_variable("XLNET_IMAGE_DIGEST", digest)

    return xlnet


def compile(path: str | Path, image: str | None = None) -> Path:
    """Write the pipeline as one YAML document that Kubeflow Pipelines and Vertex AI accept.

    Raises:
        UserError: the path is no .yaml file or cannot be written; the image is not pinned.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"output '{path}' is no YAML file; name one that ends in .yaml")
    pipeline = build(image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, str(path))
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; name a file in a directory of yours") from None
    return path


def _digest(image: str) -> str:
    match = _PINNED.fullmatch(image)
    if not match:
        raise UserError(f"image '{image}' is not pinned; give it as REGISTRY/NAME@sha256:… with all 64 digits")
    return match.group(1)
