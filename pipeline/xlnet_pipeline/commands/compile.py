"""``xlnet-pipeline compile``: the pipeline as a file for Kubeflow Pipelines and Vertex AI."""

import argparse

from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline.commands.parser import Subparsers, command
from xlnet_pipeline.commands.run import add_placement, submission
from xlnet_pipeline.targets import open_target


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "compile",
        write,
        summary="write the pipeline as a KFP YAML file",
        details="Without --image the steps name a placeholder image, good enough to read and to run locally."
        "\nWith --target the file says where the steps run; it needs an image.",
        examples=[
            "xlnet-pipeline compile -o pipeline.yaml",
            "xlnet-pipeline compile -o pipeline.yaml --image registry.example/xlnet@sha256:…",
            "xlnet-pipeline compile -o vertex.yaml --target vertex --machine v5e-8 --image example/xlnet@sha256:…",
        ],
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write, ending in .yaml")
    add_placement(parser)


def write(options: argparse.Namespace) -> None:
    """Compile and say where the file is."""
    from xlnet_pipeline import dag
    from xlnet_pipeline.images import references

    where = None
    if options.target != "local":
        any_recipe = Recipe()  # a compiled pipeline is given its recipe with each run
        where = open_target(options.target, options.home).place(submission(options, any_recipe))
    elif options.machine or options.spot or options.flex_start or options.nodes != 1:
        raise UserError("--machine, --spot, --flex-start and --nodes need --target kfp or --target vertex")
    image = references.pinned(options.image) if options.image else None
    print(f"wrote {dag.compile(options.output, image, where)}")
