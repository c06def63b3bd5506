"""The documents: generated pages are up to date, every command has help and an example, what README types parses."""

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from xlnet import recipe as recipes
from xlnet.__main__ import build_parser
from xlnet_pipeline import cli
from xlnet_pipeline.reference import pages as reference

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference.pages())
def test_generated_pages_are_up_to_date(name: str) -> None:
    written = (CHECKOUT / "docs" / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "type: python -m xlnet_pipeline.reference"


@pytest.mark.parametrize(
    ("words", "parser"),
    list(reference.commands(cli.parser())),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_command_has_help_and_an_example(words: str, parser: argparse.ArgumentParser) -> None:
    assert parser.description
    examples = (parser.epilog or "").splitlines()[1:]
    assert examples
    assert all(example.strip().startswith(words) for example in examples)
    for example in examples:
        assert parses(example.partition("  # ")[0]), example
    assert not [action.dest for action in parser._actions if action.dest != argparse.SUPPRESS and not action.help]


def parses(line: str) -> bool:
    """Whether the command line is understood, up to its first redirection."""
    words = shlex.split(line.partition("<")[0] if " < " in line else line, comments=True)
    assert words[0] == "xlnet-pipeline"
    try:
        return hasattr(cli.parser().parse_args(words[1:]), "handler")
    except SystemExit as end:  # help was printed
        return "help" in words and end.code == 0


def readme_commands() -> list[str]:
    """Every xlnet-pipeline command that README shows, in blocks and in running text."""
    pages = [README, *(page.read_text(encoding="utf-8") for page in sorted((CHECKOUT / "docs").rglob("*.md")))]
    text = "\n".join(pages)
    blocks = re.findall(r"^xlnet-pipeline [^…\n]*$", text, re.MULTILINE)
    return sorted({*blocks, *re.findall(r"`(xlnet-pipeline \w[^`…]*)`", text)})


def test_readme_shows_commands() -> None:
    assert len(readme_commands()) > 8


def test_readme_is_short() -> None:
    assert len(README.split()) < 1200


@pytest.mark.parametrize("line", readme_commands())
def test_commands_in_readme_parse(line: str) -> None:
    assert parses(line)


@pytest.mark.parametrize("line", re.findall(r"^python -m xlnet .*$", README, re.MULTILINE))
def test_steps_in_readme_parse(line: str) -> None:
    assert vars(build_parser().parse_args(shlex.split(line)[3:]))


def test_recipe_in_readme_is_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert recipes.from_changes(tomllib.loads(block)).registry.name == "reviews"


def test_links_in_documents_lead_somewhere() -> None:
    pages = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    assert not [link for page, link in links if not (page.parent / link).exists()]


def test_drawn_tree_exists() -> None:
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```text\n(components/xlnet/.*?)```", text, re.DOTALL)
    paths: list[Path] = []
    root = CHECKOUT
    for line in tree.splitlines():
        names = line.strip().partition("  ")[0].split()
        inside = line.startswith(" ")
        paths += [(root if inside else CHECKOUT) / name for name in names]
        root = root if inside else paths[-1]
    assert len(paths) > 15
    assert not [path for path in paths if not path.exists()]


PLATFORM = {"HOME", "PATH", "TMPDIR"}  # of every program


def variables() -> set[str]:
    """Environment variables that the product names: read from ``os.environ``, or a string written like one."""
    found: set[str] = set()
    for root in ("components", "pipeline"):
        for path in (CHECKOUT / root).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'environ(?:\.get)?[\[(]"(\w+)"', text))
            found |= set(re.findall(r'"((?:XLNET|KFP|VERTEX|AIP|MLFLOW|OMP|AWS|S3)_[A-Z0-9_]+)"', text))
    return found - PLATFORM


def test_every_environment_variable_is_documented() -> None:
    page = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(variables()) > 40
    documented = set(re.findall(r"`([A-Z_][A-Z0-9_]+)`", page[page.index("## Environment variables") :]))
    assert not variables() - documented, "add them to the tables of docs/architecture.md"
    code = [path for root in ("components", "pipeline", "containers") for path in (CHECKOUT / root).rglob("*")]
    words = {word for path in code if path.suffix in (".py", "") and path.is_file() for word in _words(path)}
    assert not documented - words, "nothing reads them: remove them from docs/architecture.md"


def _words(path: Path) -> list[str]:
    return re.findall(r"[A-Z_][A-Z0-9_]+", path.read_text(encoding="utf-8"))
