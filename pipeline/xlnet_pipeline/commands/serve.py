"""``xlnet-pipeline serve``: serve a model over HTTP until the user stops the command."""

import argparse
import functools
import os

from xlnet.errors import UserError
from xlnet.options import add_serving
from xlnet_pipeline.commands.models import add_uri, open_registry
from xlnet_pipeline.commands.parser import Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "serve",
        serve,
        "answer over HTTP with a model",
        "serve uci-sentences",
        "serve models:/uci-sentences@champion --port 9000",
        "serve ./model --host 0.0.0.0",
        details="docs/serving.md describes routes, limits and answers. There is no authentication, so only this\n"
        "machine can connect unless --host says otherwise. Ctrl-C answers the requests in progress and ends.",
    )
    add_serving(parser)
    add_uri(parser)


def serve(options: argparse.Namespace) -> None:
    """Answer requests until SIGTERM or Ctrl-C."""
    if not options.model:
        raise UserError("no model is named, and AIP_STORAGE_URI is not set; type: xlnet-pipeline serve NAME")
    from xlnet.serving import serve as serving

    registry = functools.partial(open_registry, options)
    serving(options.model, options.host, options.port, dict(os.environ), registry, options.precision)
