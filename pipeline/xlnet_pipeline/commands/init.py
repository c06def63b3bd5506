"""``xlnet-pipeline init``: write a recipe to start from, with every field explained, and the demo data."""

import argparse
import shlex
import shutil
import tomllib
from pathlib import Path

from xlnet.errors import UserError
from xlnet_pipeline.commands.parser import Subparsers, command
from xlnet_pipeline.commands.run import DEMO, DEMO_RECIPE
from xlnet_pipeline.reference import recipe as recipe_reference
from xlnet_pipeline.targets import record

TITLE = """A recipe for xlnet-pipeline. Run it with: xlnet-pipeline run recipe.toml
It trains on the demo sentences beside it. For your own texts change data.train, data.text, data.label,
data.format, data.header and registry.name. Remove a leading '# ' to set a field."""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers, "init", write, "write a commented recipe.toml and the demo data", "init", "init sentiment"
    )
    parser.add_argument("directory", nargs="?", default=".", metavar="DIR", help="where to write (default: here)")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")


def write(options: argparse.Namespace) -> None:
    """Write the recipe and the demo data.

    Raises:
        UserError: a file exists already, or cannot be written.
    """
    folder = Path(options.directory)
    recipe, data = folder / "recipe.toml", folder / DEMO.name
    for path in (recipe, data):
        if path.exists() and not options.force:
            raise UserError(f"'{path}' exists; name another directory, or overwrite it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(DEMO, data, dirs_exist_ok=True, ignore=shutil.ignore_patterns(DEMO_RECIPE.name))
        recipe.write_text(recipe_reference.commented_toml(demo_values(), TITLE), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{error.filename}': {error.strerror}; name a directory of yours") from None
    print(f"wrote {recipe} and {data}\nnext: xlnet-pipeline run {shlex.quote(str(recipe))}")


def demo_values() -> dict[str, object]:
    """Return the demo's fields, with data paths that point beside the recipe instead of into the package."""
    values = record.flat(tomllib.loads(DEMO_RECIPE.read_text(encoding="utf-8")))
    return {**values, "data.train": f"{DEMO.name}/*.txt"}
