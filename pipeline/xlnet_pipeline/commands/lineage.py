"""``xlnet-pipeline lineage``: show where a model, or any other artifact, came from."""

import argparse
import shutil
import sys
from pathlib import Path

from xlnet import provenance
from xlnet.errors import UserError
from xlnet_pipeline.commands.parser import Subparsers, command
from xlnet_pipeline.commands.run import local
from xlnet_pipeline.commands.runs import add_target, chosen
from xlnet_pipeline.commands.tables import coloured

GENERATOR = '<meta name="generator" content="xlnet-pipeline lineage">'  # in every page that this command writes


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "lineage",
        show,
        "show what an artifact was made from, back to the input files",
        "lineage uci-sentences@champion",
        "lineage latest --html lineage.html",
        "lineage uci-sentences:1 --verify",
        "lineage 4f2a --target vertex",
    )
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="RUN|MODEL|DIR",
        help="a run ('latest' is the newest), a registered model (NAME, NAME:VERSION, NAME@ALIAS), a directory",
    )
    parser.add_argument("--run", metavar="RUN", help="a run, also where a model has the same name")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the graph as JSON")
    form.add_argument("--html", metavar="FILE", help="the graph as one self-contained page")
    add_target(parser)
    parser.add_argument("--verify", action="store_true", help="check every artifact's bytes against its digest")


def show(options: argparse.Namespace) -> int:
    """Print or write the lineage. Return 1 if ``--verify`` finds an artifact whose content has changed."""
    from xlnet_pipeline.lineage import graph, rendering

    if (options.subject is None) == (options.run is None):
        raise UserError("name one run, model or directory to show; for example: xlnet-pipeline lineage latest")
    if options.run is not None or options.target != "local":
        found = graph.of_target(options.run or options.subject, chosen(options))
    else:
        found = graph.collect(options.subject, local(options).home)
    if options.html:
        _write(options.html, rendering.to_html(found))
    elif options.json:
        print(rendering.to_json(found))
    else:
        print(rendering.to_text(found, coloured(sys.stdout), shutil.get_terminal_size().columns))
    if not options.verify:
        return 0
    problems = graph.verify(found)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print("verified: every artifact that is here still has its digest", file=sys.stderr)
    return 1 if problems else 0


def _write(file: str, text: str) -> None:
    provenance.refuse_foreign_file(Path(file), lambda there: GENERATOR in there)
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{file}': {error.strerror}; name a file in a directory of yours") from None
    print(f"wrote {file}")
