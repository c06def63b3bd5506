"""``python -m xlnet STEP``: every step of the pipeline without a pipeline engine."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xlnet import recipe as recipes
from xlnet.errors import RunError, UserError
from xlnet.options import MODEL, add_generation, add_serving, add_source, device
from xlnet.redaction import visible
from xlnet.steps import STEPS
from xlnet.training import DEVICES


@dataclass(frozen=True)
class Command:
    """A step's command: a function that imports and runs the step, and the options of an example."""

    run: Callable[[str, argparse.Namespace], dict[str, Any]]
    example: str


def _snapshot(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.data.snapshot import take

    found = take(recipe_json)
    return {"digest": found.digest, "files": [file.facts() for file in found.files]}


def _survey(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.data.dividing import survey

    facts, keys = survey(recipe_json, options.snapshot, options.shards, options.out)
    return {**facts, "keys": keys}


def _tokenise(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.data.shard_tokens import tokenise

    return tokenise(recipe_json, options.shard, options.survey, options.out)


def _preprocess(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.data.preprocess import join, preprocess

    if bool(options.survey) != bool(options.tokens):
        raise UserError("--survey and --tokens go together; give both, or neither")
    if options.survey:
        return join(recipe_json, options.survey, options.tokens, options.out)
    if options.runner == "beam":
        from xlnet.data import beam

        return preprocess(recipe_json, options.snapshot, options.out, options.work, beam.runner(options.beam_options))
    for name in ("work", "beam_options"):
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} goes with --runner beam; add that, or leave it out")
    return preprocess(recipe_json, options.snapshot, options.out)


def _train(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.training.launch import train

    if options.device:
        os.environ["XLNET_DEVICE"] = options.device
    if options.base:
        from xlnet.training.pretraining import continuing

        recipe_json = continuing(recipe_json, options.base)
    return train(recipe_json, options.dataset, options.out)


def _pretrain(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.training.pretraining import pretrain

    if options.device:
        os.environ["XLNET_DEVICE"] = options.device
    return pretrain(recipe_json, "", options.dataset, options.out)


def _evaluate(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.evaluation.evaluate import evaluate

    return evaluate(recipe_json, options.dataset, options.model, options.out)


def _register(recipe_json: str, options: argparse.Namespace) -> dict[str, Any]:
    from xlnet.registry.register import register

    return register(recipe_json, options.dataset, options.model, options.evaluation, options.out)


COMMANDS = {
    "snapshot": Command(_snapshot, "--recipe recipe.toml"),
    "survey": Command(_survey, "--recipe recipe.toml --shards 8 --out survey"),
    "tokenise": Command(_tokenise, "--recipe recipe.toml --survey survey --shard KEY --out shard-0"),
    "preprocess": Command(_preprocess, "--recipe recipe.toml --out dataset"),
    "pretrain": Command(_pretrain, "--set pretraining.corpus=train --dataset dataset --out base"),
    "train": Command(_train, "--set model.preset=small --dataset dataset --out model"),
    "evaluate": Command(_evaluate, "--dataset dataset --model model --out evaluation"),
    "register": Command(
        _register,
        "--set registry.name=reviews --dataset dataset --model model --evaluation evaluation --out registration",
    ),
}
# Options for the artifacts of optional steps.
IF_MADE: dict[str, dict[str, Any]] = {
    "base": {"metavar": "DIR", "help": "directory of a pretrained model, from step pretrain"},
    "survey": {"metavar": "DIR", "help": "directory of a survey, from step survey, whose shards are to be joined"},
    "tokens": {"metavar": "DIR", "nargs": "+", "help": "directories of its shards, from step tokenise"},
}
PREDICT_EXAMPLE = "python -m xlnet predict model 'what a lovely film'"
GENERATE_EXAMPLE = "python -m xlnet generate model 'the film was'"
EXPORT_EXAMPLE = "python -m xlnet export .model.checkpoints/4f2a… --dataset dataset --out model"
SERVE_EXAMPLE = "python -m xlnet serve reviews@champion --port 8080"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m xlnet", description=__doc__, epilog=f"example: {PREDICT_EXAMPLE}")
    subparsers = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, step in STEPS.items():
        epilog = f"example: python -m xlnet {name} {COMMANDS[name].example}"
        one = subparsers.add_parser(name, help=step.summary, description=step.summary, epilog=epilog)
        one.add_argument("--recipe", metavar="FILE", help="recipe in TOML")
        one.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change one field")
        one.add_argument("--recipe-json", metavar="JSON", help="the whole recipe, or the sections that the step needs")
        if name in ("survey", "preprocess"):
            one.add_argument("--snapshot", default="", metavar="DIGEST", help="refuse input with another digest")
        if name == "preprocess":
            _add_preprocess(one)
        if name == "survey":
            one.add_argument("--shards", type=int, required=True, metavar="N", help="parts to divide the rows into")
        if step.key:
            what = "key of the shard, as step survey prints it"
            one.add_argument(f"--{step.key}", required=True, metavar="KEY", help=what)
        if step.trains:
            one.add_argument(
                "--device",
                type=device,
                choices=DEVICES,
                help="where to train; default: $XLNET_DEVICE, else what is there",
            )
        for field in step.if_made:
            one.add_argument(f"--{field}", **IF_MADE[field])
        for field in [*step.inputs, *(["out"] if step.output else [])]:
            what = "directory to be written" if field == "out" else f"directory of the {field}"
            one.add_argument(f"--{field}", required=True, metavar="DIR", help=what)
    summary = "label texts with a model, as JSON Lines"
    one = subparsers.add_parser("predict", help=summary, description=summary, epilog=f"example: {PREDICT_EXAMPLE}")
    one.add_argument("model", metavar="MODEL", help=MODEL)
    add_source(one)
    summary = "write text with a language model: continue a prompt, or fill a gap"
    one = subparsers.add_parser("generate", help=summary, description=summary, epilog=f"example: {GENERATE_EXAMPLE}")
    one.add_argument("model", metavar="MODEL", help=MODEL)
    add_generation(one)
    summary = "write a model directory from the checkpoints of a training that has not ended"
    one = subparsers.add_parser("export", help=summary, description=summary, epilog=f"example: {EXPORT_EXAMPLE}")
    one.add_argument(
        "checkpoints", metavar="CHECKPOINTS", help="directory or gs:// prefix with one training's checkpoints"
    )
    one.add_argument("--dataset", required=True, metavar="DIR", help="directory of the dataset")
    one.add_argument("--out", required=True, metavar="DIR", help="directory to be written")
    what = "the best on the validation split so far, or the newest; default: best"
    one.add_argument("--weights", choices=("best", "newest"), default="best", help=what)
    summary = "answer over HTTP with a model"
    one = subparsers.add_parser("serve", help=summary, description=summary, epilog=f"example: {SERVE_EXAMPLE}")
    add_serving(one)
    return parser


def _add_preprocess(one: argparse.ArgumentParser) -> None:
    what = "what tokenises: processes of this machine, or Apache Beam on others; default: processes"
    one.add_argument("--runner", choices=("processes", "beam"), default="processes", help=what)
    what = "directory, or address in a bucket, that all machines reach; default: beside --out"
    one.add_argument("--work", default="", metavar="FOLDER", help=what)
    what = "Beam's own options in one word, such as '--runner DataflowRunner --project …'; default: this machine"
    one.add_argument("--beam-options", default="", metavar="OPTIONS", help=what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step and print its facts as JSON; return the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        if options.step == "predict":
            _predict(options)
        elif options.step == "generate":
            _generate(options)
        elif options.step == "serve":
            _serve(options)
        elif options.step == "export":
            from xlnet.training.export import export

            facts = export(options.checkpoints, options.dataset, options.out, options.weights)
            print(json.dumps(facts, indent=1, ensure_ascii=False))
        else:
            from xlnet.registry.locate import with_weights

            given = options.recipe_json or with_weights(recipes.load(options.recipe, options.set)).to_json()
            print(json.dumps(COMMANDS[options.step].run(given, options), indent=1, ensure_ascii=False))
    except (UserError, RunError) as error:
        if "XLNET_RANK_REPORT" not in os.environ:  # otherwise the launcher reports it, once for all ranks
            print(visible(f"error: {error}"), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the program that read our output has ended
        return 0
    except Exception:
        if "XLNET_RANK_REPORT" not in os.environ:
            raise
        return RunError.exit_status  # the traceback is in the report
    return 0


def _predict(options: argparse.Namespace) -> None:
    from xlnet.evaluation import predict as predicting
    from xlnet.evaluation.predictor import Predictor
    from xlnet.evaluation.questions import texts_from
    from xlnet.registry.locate import model_directory

    predictor = Predictor(model_directory(options.model), options.precision)
    source = options.source if isinstance(options.source, str) else "--"  # argparse makes [] of the text --
    texts = texts_from(source, predictor, options.pair, options.format, options.text)
    predicting.print_answers(predicting.predict(predictor, texts))


def _generate(options: argparse.Namespace) -> None:
    from xlnet.generation import output
    from xlnet.generation.writer import Writer
    from xlnet.registry.locate import model_directory

    options.prompt = options.prompt if isinstance(options.prompt, str) else "--"  # argparse makes [] of the text --
    output.run(Writer(model_directory(options.model), options.precision), options)


def _serve(options: argparse.Namespace) -> None:
    from xlnet.serving import serve

    if not options.model:
        raise UserError(f"no model is named, and AIP_STORAGE_URI is not set; type: {SERVE_EXAMPLE}")
    serve(options.model, options.host, options.port, dict(os.environ), precision=options.precision)


if __name__ == "__main__":
    sys.exit(main())
