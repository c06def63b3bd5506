"""``xlnet-pipeline completion``: prints a script with which a shell completes commands, options and their values."""

import argparse
import functools
from collections.abc import Iterator

from xlnet.errors import UserError
from xlnet_pipeline.commands.parser import Parser, Subparsers, command

SHELLS = ("bash", "zsh", "fish")


def add(subparsers: Subparsers, top: Parser) -> None:
    """Declare the command; ``top`` is the parser of the whole command line."""
    parser = command(
        subparsers,
        "completion",
        functools.partial(write, top),
        "print a script that completes commands and options in your shell",
        *(f"completion {shell}" for shell in SHELLS),
        details="bash: add this line to ~/.bashrc: source <(xlnet-pipeline completion bash)\n"
        "zsh: save the script as _xlnet-pipeline in a directory of $fpath\n"
        "fish: save the script as ~/.config/fish/completions/xlnet-pipeline.fish",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def write(top: Parser, options: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion needs shtab; type: pip install 'xlnet-pipeline[pipeline]'") from None
    for action in _actions(top):
        shown = str(action.metavar)
        if "FILE" in shown or shown.endswith((".toml", ".json")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif shown == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(top, options.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in {id(one): one for one in action.choices.values()}.values():
                yield from _actions(below)
        else:
            yield action
