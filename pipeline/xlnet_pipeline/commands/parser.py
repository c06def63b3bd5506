"""argparse with one-line errors that suggest the nearest valid word, and an example in every help text."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from xlnet.errors import UserError, nearest

Handler = Callable[[argparse.Namespace], int | None]
Subparsers = Any  # argparse's own type is private


class Help(argparse.RawDescriptionHelpFormatter):
    """Formats help the same on every Python version: Python 3.13 began to write ``-o, --output FILE``."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print a message and exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Help, add_help=False, **options)
        self.add_argument("-h", "--help", action="help", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the mistake and the help command to type."""
        raise UserError(f"{message}; see: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. For an unknown option, suggest the nearest known one."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["help"] and self._subparsers is not None:
            words = [*words[1:], "--help"]
        if words and self._is_unknown_option(words[0]):  # otherwise argparse takes its value for a command
            self._unknown_option(words[0])
        found, unknown = super().parse_known_args(words, namespace)
        for word in filter(self._is_unknown_option, unknown):
            self._unknown_option(word)
        if unknown:
            self.error(f"unexpected '{unknown[0]}'")
        return found, unknown

    def _is_unknown_option(self, word: str) -> bool:
        return word.startswith("-") and word not in ("-", "--") and word.partition("=")[0] not in self._known

    def _unknown_option(self, word: str) -> NoReturn:
        long = [option for option in self._known if option.startswith("--")]
        self.error(f"unknown option '{word}'{nearest(word.partition('=')[0], long)}")

    @property
    def _known(self) -> list[str]:
        return list(self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        allowed = [str(choice) for choice in action.choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
        raise UserError(f"unknown {what} '{value}'; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}")


def group(subparsers: Subparsers, name: str, summary: str, *examples: str) -> Subparsers:
    """Declare a command that has subcommands. Return the object on which to declare them; see :func:`command`."""
    parser = _declare(subparsers, name, summary, examples, details="")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)


def command(
    subparsers: Subparsers, name: str, handler: Handler, summary: str, *examples: str, details: str = ""
) -> Parser:
    """Declare a command. Return its parser, so that the caller can add arguments.

    Args:
        subparsers: the command line, or a :func:`group`.
        name: the command's name.
        handler: runs the command and returns its exit status; None: 0.
        summary: one clause about what the command does, without a capital letter and a full stop.
        examples: what to type after ``xlnet-pipeline``.
        details: more sentences for the command's own help.
    """
    parser = _declare(subparsers, name, summary, examples, details)
    parser.set_defaults(handler=handler)
    return parser


def _declare(subparsers: Subparsers, name: str, summary: str, examples: Sequence[str], details: str) -> Parser:
    heading = "example" if len(examples) == 1 else "examples"
    parser: Parser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}." + (f"\n\n{details}" if details else ""),
        epilog="\n".join([f"{heading}:", *(f"  xlnet-pipeline {example}" for example in examples)]),
    )
    add_home(parser, default=argparse.SUPPRESS)
    return parser


def add_home(parser: argparse.ArgumentParser, default: Any = None) -> None:
    """Declare ``--home``, which users can type before or after the command."""
    text = "directory of runs, cache and registry (default: $XLNET_PIPELINE_HOME, else .xlnet-pipeline)"
    parser.add_argument("--home", metavar="DIR", default=default, help=text)


def seconds(text: str) -> float:
    """Parse a positive number of seconds, for argparse's ``type``."""
    if (value := _measured(text, {"": 1})) > 0:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")


def whole(text: str) -> int:
    """Parse a whole number of at least 1, for argparse's ``type``."""
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")


def count(text: str) -> int:
    """Parse a whole number of at least 0, for argparse's ``type``."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")


def age(text: str) -> float:
    """Parse a duration such as ``30d``, ``12h``, ``90m`` or ``0`` into seconds, for argparse's ``type``."""
    value = _measured(text, {"d": 86400, "h": 3600, "m": 60, "": 1})
    if value == 0 or (value > 0 and text[-1].isalpha()):
        return value
    raise argparse.ArgumentTypeError(f"'{text}' is not an age; write it as 30d, 12h, 90m or 0")


def hours(text: str) -> float:
    """Parse a positive duration such as ``90m``, ``2h`` or ``1.5`` (hours) into hours, for argparse's ``type``."""
    if (value := _measured(text, {"h": 1, "m": 1 / 60, "": 1})) > 0:
        return value
    raise argparse.ArgumentTypeError(f"'{text}' is not a time above 0; write it as 90m or 2h")


def _measured(text: str, units: Mapping[str, float]) -> float:
    """Parse a number and the letter of its unit (the key "" stands for none); -1 if that is not what the text holds."""
    unit = text[-1:] if text[-1:] in units else ""
    try:
        value = float(text.removesuffix(unit)) * units[unit]
    except ValueError:
        return -1.0
    return value if value < float("inf") else -1.0
