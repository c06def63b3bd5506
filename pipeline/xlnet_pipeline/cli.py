"""``xlnet-pipeline``: the command line.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from xlnet import __version__
from xlnet.errors import RunError, UserError
from xlnet.redaction import visible
from xlnet_pipeline.commands import (
    build,
    check,
    checkpoints,
    compile,
    completion,
    doctor,
    generate,
    init,
    lineage,
    models,
    plan,
    predict,
    run,
    runs,
    schedule,
    serve,
    ui,
)
from xlnet_pipeline.commands.parser import Parser, add_home

COMMANDS = (
    *(init, run, runs, ui, schedule, plan, check, doctor),
    *(models, checkpoints, lineage, predict, generate, serve, compile, build),
)
CANCELLED = 130
EXTRAS = {
    "kfp",
    "kfp_server_api",
    "apscheduler",
    "docker",
    "google",
    "mlflow",
    "sqlalchemy",
    "alembic",
}  # installed by the extra 'pipeline'
BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


def parser() -> Parser:
    """Build the parser of the whole command line."""
    top = Parser(
        prog="xlnet-pipeline",
        description="Train XLNet on your own text: snapshot → preprocess → train → evaluate → register.",
        epilog="examples:\n"
        "  xlnet-pipeline run                 # the demo, about a minute\n"
        "  xlnet-pipeline init                # a commented recipe.toml for your own texts\n"
        "  xlnet-pipeline run recipe.toml\n"
        "  xlnet-pipeline help run            # what a command does, with examples",
    )
    add_home(top)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}", help="show it and exit")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(subparsers)
    completion.add(subparsers, top)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: success, 1: a failed run, 2: the user's mistake, 124: time-out, 130: cancelled, 141: broken pipe.
    """
    try:
        options = _parse(arguments)
        status = options.handler(options) or 0
        sys.stdout.flush()
    except (UserError, RunError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return error.exit_status
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in EXTRAS:
            raise
        print(f"error: {error.name} is not installed; type: pip install 'xlnet-pipeline[pipeline]'", file=sys.stderr)
        return UserError.exit_status
    except KeyboardInterrupt:
        print("\ncancelled", file=sys.stderr)
        return CANCELLED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # otherwise Python reports an error when it exits
        return BROKEN_PIPE
    except OSError as error:  # a file or directory of the user's, such as one that may not be read
        if error.filename is None or error.strerror is None:
            raise
        print(visible(f"error: cannot use '{os.fsdecode(error.filename)}': {error.strerror}"), file=sys.stderr)
        return RunError.exit_status
    return int(status)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    options = top.parse_args(arguments)
    if not hasattr(options, "handler"):
        top.error("no command was given")
    return options


if __name__ == "__main__":
    sys.exit(main())
