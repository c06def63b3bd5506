"""The pipeline, from top to bottom: snapshot → preprocess → train → evaluate → register.

If a recipe asks for pretraining, its pipeline has one more step, pretrain. If it asks for shards, the steps survey and
tokenise come before preprocess, and tokenise runs once for each shard. Other pipelines do not contain these steps.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from xlnet import provenance
from xlnet.errors import UserError
from xlnet.steps import KEPT, STEPS, of_run
from xlnet_pipeline import placement
from xlnet_pipeline.placement import Placement
from xlnet_steps import pretraining, sharded, steps, supervisor

NAME = "xlnet"
DESCRIPTION = "Train, evaluate and register XLNet on your own text"


def build(
    image: str | None = None,
    code: Mapping[str, str] | None = None,
    where: Placement | None = None,
    pretrains: bool = False,
    shards: int = 1,
) -> dsl.base_component.BaseComponent:
    """Return the pipeline. Its only parameter is the recipe's JSON.

    Args:
        image: ``REGISTRY/NAME@sha256:…`` that the steps run in; None: a placeholder, for the local target.
        code: step → identity of its code, a part of every cache key; None: the image's digest, or without an image
            the fingerprints of the installed sources.
        where: target and machine to build for; None: no target in particular, as the local target needs it.
        pretrains: whether the pipeline has the step pretrain.
        shards: number of tasks that tokenise; 1: step preprocess does it all.

    Raises:
        UserError: the image is not pinned by its digest, so a cache could not notice that it changed.
    """
    image = where.image if where else image
    digest = placement.image_digest(image) if image else ""
    code = code or {step: digest or provenance.code_fingerprint(step) for step in KEPT}
    components = vars(steps) | (vars(pretraining) if pretrains else {}) | (vars(sharded) if shards > 1 else {})
    kept = [step for name, step in of_run(pretrains, shards > 1).items() if name in KEPT]

    @dsl.pipeline(name=NAME, description=DESCRIPTION)
    def xlnet(recipe: str) -> None:
        snapshot = components["snapshot"](recipe=recipe).set_caching_options(False)
        tasks = [snapshot]
        artifacts: dict[str, dsl.pipeline_channel.PipelineChannel] = {}
        for step in kept:
            given = {name: snapshot.outputs[output] for name, output in step.given.items()}
            given |= {"shards": str(shards)} if step.name == "survey" else {}
            inputs = {name: artifacts[name] for name in (*step.inputs, *step.if_made) if name in artifacts}
            own = snapshot.outputs[step.part_of or step.name] if step.cached else recipe
            given |= {"recipe": own, "code": code[step.name]}
            if step.looped:
                with dsl.ParallelFor(tasks[-1].outputs["keys"], name="Tokenise all shards") as key:
                    task = components[step.name](**given, **inputs, **{step.key: key})
                artifacts[step.output] = dsl.Collected(task.outputs[step.output])
            else:
                task = components[step.name](**given, **inputs)
                artifacts[step.output] = task.outputs[step.output]
            task.set_caching_options(step.cached)
            tasks.append(task)
        for task in tasks:
            task.set_display_name(STEPS[task.name].title)
            if image:
                task.set_container_image(image).set_env_variable("XLNET_IMAGE_DIGEST", digest)
                task.set_env_variable("XLNET_IMAGE", image)
            if where:
                _place(task, task.name, where)

    return xlnet


def _place(task: dsl.PipelineTask, step: str, where: Placement) -> None:
    from xlnet_pipeline.placement import gke, vertex

    for key, value in where.environment.items():
        task.set_env_variable(key, value)
    (gke if where.target == "kfp" else vertex).place(task, step, where)


def documents(
    where: Placement | None = None, image: str | None = None, pretrains: bool = False, shards: int = 1
) -> list[dict[str, Any]]:
    """Return the compiled pipeline: its specification, and for Kubernetes a second document that places the tasks."""
    from google.protobuf import json_format

    built = build(image, where=where, pretrains=pretrains, shards=shards)
    spec: dict[str, Any] = json_format.MessageToDict(built.pipeline_spec)
    without_implied(spec["root"]["dag"]["tasks"])
    if where and where.target == "vertex":
        from xlnet_pipeline.placement import vertex

        return [vertex.with_custom_job(spec, where)]
    if where:
        supervise(spec)
    platform = json_format.MessageToDict(built.platform_spec)
    return [spec, platform] if platform else [spec]


def without_implied(tasks: dict[str, Any]) -> None:
    """Drop each dependency that others imply, because the backends' pages draw an edge for each.

    kfp's compiler lists every task whose output a task reads, however far above it.
    """

    def above(name: str) -> set[str]:
        direct = tasks[name].get("dependentTasks", [])
        return {*direct, *(far for near in direct for far in above(near))}

    needed = {name: task["dependentTasks"] for name, task in tasks.items() if "dependentTasks" in task}
    implied = {name: {far for near in direct for far in above(near)} for name, direct in needed.items()}
    for name, direct in needed.items():
        tasks[name]["dependentTasks"] = [near for near in direct if near not in implied[name]]


def supervise(spec: dict[str, Any]) -> None:
    """Run each step's program under :mod:`xlnet_steps.supervisor`, for a cluster that does not retry tasks."""
    for executor in spec["deploymentSpec"]["executors"].values():
        command = executor["container"]["command"]
        executor["container"]["command"] = [word.replace(supervisor.PROGRAM, supervisor.SUPERVISED) for word in command]


def without_cache(spec: dict[str, Any]) -> None:
    """Make every task run, and keep its result out of the index from which later runs take theirs."""
    for task in placement.all_tasks(spec).values():
        task["cachingOptions"] = {}
    for executor in spec["deploymentSpec"]["executors"].values():
        if environment := executor.get("container", {}).get("env"):
            environment[:] = [one for one in environment if one["name"] != supervisor.INDEX]


def compile(
    path: str | Path,
    image: str | None = None,
    where: Placement | None = None,
    pretrains: bool = False,
    shards: int = 1,
) -> Path:
    """Write the pipeline as YAML, for both Kubeflow Pipelines and Vertex AI, or only for ``where`` if given.

    Raises:
        UserError: the path does not end in .yaml or cannot be written; the image is not pinned.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"output '{path}' is not a YAML file; name one that ends in .yaml")
    provenance.refuse_foreign_file(path, lambda text: f"\npipelineInfo:\n  description: {DESCRIPTION}\n" in text)
    import yaml

    text = yaml.safe_dump_all(documents(where, image, pretrains, shards), sort_keys=True, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; name a file in a directory of yours") from None
    return path
