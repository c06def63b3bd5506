"""``xlnet-pipeline generate``: write text with a language model."""

import argparse
import functools

from xlnet.options import MODEL, add_generation
from xlnet_pipeline.commands.models import add_uri, open_registry
from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "generate",
        generate,
        "write text with a language model: continue a prompt, or fill a gap",
        "generate models:/reviews-lm@champion 'the film was'",
        "generate ./model 'the film was' --temperature 0.8 --top-p 0.95 --seed 1",
        "generate ./model 'the film was ___ and I liked it' --infill --tokens 2",
        "generate ./model - --json < prompt.txt",
        details="The text appears token by token. Without --temperature, --top-k and --top-p each token is the\n"
        "likeliest one. --infill fills the gap at ___ with --tokens tokens, each of which sees both sides.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_generation(parser)
    add_uri(parser)


def generate(options: argparse.Namespace) -> None:
    """Print the text as it is written."""
    from xlnet.generation import output
    from xlnet.generation.writer import Writer
    from xlnet.registry.locate import model_directory

    directory = model_directory(options.model, functools.partial(open_registry, options))
    output.run(Writer(directory, options.precision), options)
