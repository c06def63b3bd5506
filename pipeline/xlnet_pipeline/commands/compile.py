"""``xlnet-pipeline compile``: write the pipeline to a file for Kubeflow Pipelines and Vertex AI."""

import argparse
from pathlib import Path

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.commands.parser import Subparsers, command, hours
from xlnet_pipeline.commands.run import AUTO, add_placement, cheapest, load, submission
from xlnet_pipeline.targets import open_target
from xlnet_pipeline.targets.settings import DEFAULT_FILE, needed


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "compile",
        write,
        "write the pipeline as a KFP YAML file",
        "compile -o pipeline.yaml",
        "compile -o pipeline.yaml --image registry.example/xlnet@sha256:…",
        "compile -o vertex.yaml --target vertex --machine v5e-8 --image example/xlnet@sha256:…",
        details="Without --image the file names a placeholder image; it can be read, and run locally."
        "\nWith --target the file says where the steps run, and needs an image. Nothing is sent; no account is needed."
        "\n--machine auto chooses a machine for the recipe of --recipe, else for recipe.toml, else for the demo. A"
        "\nrecipe with pretraining.corpus gets a pipeline with the step 'pretrain'.",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write, ending in .yaml")
    add_placement(parser)
    parser.add_argument("--deadline", type=hours, metavar="TIME", help="for --machine auto: how long training may take")
    text = "recipe file, for --machine auto and with [target.…] settings (default: recipe.toml, if there is one)"
    parser.add_argument("--recipe", metavar="FILE", help=text)


def write(options: argparse.Namespace) -> None:
    """Compile the pipeline and print the path of the file."""
    from xlnet_pipeline import dag
    from xlnet_pipeline.images import references

    where = None
    path = options.recipe or (DEFAULT_FILE if Path(DEFAULT_FILE).is_file() else None)
    given = recipes.load(path) if path else Recipe()
    if options.target != "local":
        needs = needed(options.target, image=bool(options.image), offline=True)
        target = open_target(options.target, options.home, options.recipe, needs)
        if options.machine == AUTO:
            options.machine = cheapest(options, load(path, [], options.home))
        any_recipe = Recipe()  # each run of a compiled pipeline passes its own recipe
        where = target.place(submission(options, any_recipe))
    elif options.machine or options.spot or options.flex_start or options.nodes != 1:
        raise UserError("--machine, --spot, --flex-start and --nodes need --target kfp or --target vertex")
    image = references.pinned(options.image) if options.image else None
    print(f"wrote {dag.compile(options.output, image, where, given.pretrains, given.shards)}")
