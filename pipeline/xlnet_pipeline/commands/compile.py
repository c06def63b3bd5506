"""``xlnet-pipeline compile``: the pipeline as a file for Kubeflow Pipelines and Vertex AI."""

import argparse

from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "compile",
        write,
        summary="write the pipeline as a KFP YAML file",
        details="Without --image the steps name a placeholder image, good enough to read and to run locally.",
        examples=[
            "xlnet-pipeline compile -o pipeline.yaml",
            "xlnet-pipeline compile -o pipeline.yaml --image registry.example/xlnet@sha256:…",
        ],
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write, ending in .yaml")
    parser.add_argument("--image", help="the image the steps run in, pinned as NAME@sha256:…")


def write(options: argparse.Namespace) -> None:
    """Compile and say where the file is."""
    from xlnet_pipeline import dag

    print(f"wrote {dag.compile(options.output, options.image)}")
