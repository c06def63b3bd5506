"""``xlnet-pipeline ui``: pages over runs, models, data, lineage and schedules, in a browser."""

import argparse
import os
import secrets
import sys

from xlnet.errors import UserError
from xlnet_pipeline.commands.parser import Subparsers, command

PORT = 8765
TOKEN = "XLNET_UI_TOKEN"


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "ui",
        show,
        "open the pages over runs, models, data, lineage and schedules in a browser",
        "ui",
        "ui --port 9000 --no-open",
        "ui --host 0.0.0.0",
        details="Only this machine can connect unless --host says otherwise; another machine then needs the token\n"
        f"that is printed, or the one in ${TOKEN}. Ctrl-C ends it; runs go on.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=port, default=PORT, metavar="N", help=f"default: {PORT}; 0: any that is free")
    parser.add_argument("--no-open", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--recipe", metavar="FILE", help="recipe file with [target.…] settings (default: recipe.toml)")


def port(text: str) -> int:
    """Parse a port's number, for argparse's ``type``."""
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port from 0 to 65535")
    return int(text)


def show(options: argparse.Namespace) -> None:
    """Serve the pages until SIGTERM or Ctrl-C.

    Raises:
        UserError: the state directory or the address cannot be used, or the extra is not installed.
    """
    try:
        from xlnet_pipeline.ui import server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; type: pip install 'xlnet-pipeline[ui]'") from None
    from xlnet_pipeline.ui.site import Site

    here = options.host in server.LOOPBACK
    token = "" if here else os.environ.get(TOKEN) or secrets.token_urlsafe(16)
    listening = server.listen(options.host, options.port)
    address = server.address(options.host, listening) + (f"/?token={token}" if token else "/")
    if token:
        print("other machines can connect, if they show the token in this address", file=sys.stderr)
    print(f"{address}\nstop with Ctrl-C", flush=True)
    if not options.no_open:
        import webbrowser

        webbrowser.open(address)
    server.serve(Site(options.home, options.recipe), listening, token)
