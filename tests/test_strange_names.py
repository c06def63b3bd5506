"""Names that mean something in SQL, addresses, shells, HTML or CSV are names here, or refused at once."""

import csv
import io
import os
import shlex
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import GOOD, Trained, write_sentences

from xlnet.redaction import visible
from xlnet.registry import open_registry
from xlnet_pipeline import cli
from xlnet_pipeline.targets import docker

SMALL = ["max_length=24", "n_layer=1", "d_model=16", "n_head=1", "d_head=16", "d_inner=16", "steps=2", "resamples=100"]
SECTIONS = {"max_length": "data", "steps": "training", "resamples": "evaluation"}
PLACES = ("it's", "a b", "ü", "a%2Fb", "q?x", "h#y", "x:y", 'say "so"', "$HOME;`id`", "a,b", "<b>&")
NAME = 'it\'s-"ü"-50%-<b>&amp;'
DATA = 'it\'s a "b" #c? d%41, ü & <i>.csv'


def settings(data: str, name: str) -> list[str]:
    given = [f"data.train={data}", f"registry.name={name}"]
    given += [f"{SECTIONS.get(one.partition('=')[0], 'model')}.{one}" for one in SMALL]
    return [word for one in given for word in ("--set", one)]


@dataclass(frozen=True)
class Ran:
    """One run in a folder and with a state directory, a data file and a model of strange names."""

    home: str
    words: list[str]
    shown: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    work = tmp_path_factory.mktemp("strange") / " ".join(PLACES[:3])
    work.mkdir()
    write_sentences(work / DATA)
    home = str(work / " ".join(PLACES))
    patch = pytest.MonkeyPatch()
    patch.chdir(work)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["--home", home, "run", *settings(DATA, NAME)]
    out = io.StringIO()
    patch.setattr("sys.stdout", out)
    try:
        assert cli.main(words) == 0, out.getvalue()
        first = out.getvalue()
        assert cli.main(words) == 0, out.getvalue()
    finally:
        patch.undo()
    again = out.getvalue()[len(first) :]
    assert [f"{step}: cached" in again for step in ("preprocess", "train", "evaluate", "register")] == [True] * 4, again
    return Ran(home, words, first)


def test_a_run_of_strange_names_is_found_again(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", ran.home]
    assert cli.main([*home, "models", "list"]) == 0
    assert f"{NAME}:1" in capsys.readouterr().out
    for reference in (NAME, f"{NAME}:1", f"models:/{NAME}/1"):
        assert cli.main([*home, "predict", reference, GOOD[0]]) == 0
        assert '"label"' in capsys.readouterr().out
    assert cli.main([*home, "models", "show", f"{NAME}:1"]) == 0
    assert ran.home in capsys.readouterr().out
    assert cli.main([*home, "lineage", NAME, "--verify"]) == 0
    assert DATA in capsys.readouterr().out
    assert cli.main([*home, "runs", "logs", "latest"]) == 0
    assert cli.main([*home, "runs", "prune", "--dry-run"]) == 0
    assert cli.main([*home, "models", "promote", f"{NAME}:1"]) == 0
    assert cli.main([*home, "predict", f"{NAME}@champion", GOOD[0]]) == 0


def test_suggested_commands_can_be_pasted_into_a_shell(ran: Ran) -> None:
    predict, lineage, runs = (shlex.split(line) for line in ran.shown.splitlines() if "xlnet-pipeline --" in line)
    for given in (predict, lineage, runs):
        assert os.path.basename(given[given.index("--home") + 1]) == os.path.basename(ran.home)
    assert predict[-3:-1] == ["predict", f"{NAME}:1"]
    assert lineage[-4:] == ["lineage", f"{NAME}:1", "--html", "lineage.html"]


class Page(HTMLParser):
    """What a page shows, and names of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_names_as_text(ran: Ran, tmp_path: Path) -> None:
    assert cli.main(["--home", ran.home, "lineage", NAME, "--html", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"registration {NAME}:1" in page.text
    assert f"file train: {DATA}" in page.text
    assert not {"b", "i"} & page.tags


NAMES = ("it's", 'say-"so"', 'it\'s-"both"', "100%27", "ü模", "a'or'1'='1", "--all;$(id)")


def test_every_name_has_its_own_versions(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real MLflow store; a name with both kinds of quotes has no filter in MLflow's language."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", *settings(str(write_sentences(tmp_path / "a.csv", 60)), NAMES[2])]) == 0
    registry = open_registry()
    for name in NAMES:
        registry.add(name, f"of {name}", {"model_uri": str(trained.model)}, {}, {})
    capsys.readouterr()
    assert cli.main(["models", "list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {f"{name}:1" for name in NAMES}
    for name in NAMES[:4]:
        assert cli.main(["models", "show", name]) == 0
        assert f"of {name}" in capsys.readouterr().out
    assert cli.main(["predict", NAMES[2], GOOD[0]]) == 0
    for name in NAMES:
        assert [(one.name, one.version) for one in registry.versions(name)] == [(name, 1)]


@pytest.mark.parametrize("name", ["a:1", "a@champion", "team/model", "..", "a b", "a\tb", "a\x1b[31m", "a\u200bb", ""])
def test_names_that_could_not_be_typed_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_sentences(tmp_path / "a.csv", 20))
    for command in ("check", "run"):
        assert cli.main([command, *settings(data, name)]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: registry.name is ")
        assert shown.count("\n") == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "proposal"),
    [("2026-reviews", "m-2026-reviews"), ("Reviews.v1", "reviews-v1"), ("ü", "m"), ("-a", "a"), ("it's", "it-s")],
)
def test_a_name_that_vertex_refuses_is_refused_before_work(
    name: str, proposal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Reviews.v1`` would share its id with ``reviews-v1``, which is a name of its own."""
    monkeypatch.setenv("XLNET_IMAGE", "registry.example/xlnet@sha256:" + "0" * 64)
    monkeypatch.setenv("VERTEX_PROJECT_ID", "demo")
    monkeypatch.setenv("VERTEX_PIPELINE_ROOT", "gs://bucket/root")
    words = ["--target", "vertex", "--set", "data.train=demo:uci_sentences", "--set", "data.text=0"]
    words += ["--set", "data.label=1", "--set", "data.header=no", "--set", "data.format=tsv"]
    for command in (["check"], ["run", "--dry-run"]):
        assert cli.main([*command, *words, "--set", f"registry.name={name}"]) == 2
        shown = "".join(capsys.readouterr())
        assert f"registry.name is '{name}'; allowed on Vertex AI: " in shown
        assert f", such as '{proposal}'" in shown
    assert cli.main(["run", "--dry-run", *words, "--set", "registry.name=reviews-v1"]) == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_container_is_shown_a_folder_whatever_its_name(place: str) -> None:
    """``--volume`` splits at colons, ``--mount`` is a line of CSV."""
    option, _, value = docker._mount(Path("/data", place), "readonly").partition("=")
    assert option == "--mount"
    (fields,) = csv.reader([value])
    assert fields == ["type=bind", f"source=/data/{place}", f"target=/data/{place}", "readonly"]


@pytest.mark.parametrize("end", ["\n", "\r", "\x1b[2J", "\x00"])
def test_a_path_that_cannot_be_seen_is_refused(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if end != "\x00":
        write_sentences(Path(f"a{end}.csv"), 20)
    for command in ("check", "run"):
        assert cli.main([command, "--set", f"data.train=a{end}.csv"]) == 2
        shown = "".join(capsys.readouterr())
        (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert line.endswith("is not a path: it holds characters that cannot be seen")
        assert "\x1b" not in shown


def test_messages_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "show", "\x1b]0;title\x07\x1b[31mred\r"]) == 2
    shown = capsys.readouterr().err
    assert "\\x1b]0;title\\x07red\\x0d" in shown
    assert visible("\x9b31m\x1b[1;31mred\x1b[0m\ttab\nline ü 模") == "\\x9b31mred\ttab\nline ü 模"


@pytest.mark.parametrize("place", PLACES)
def test_schedules_lie_in_a_state_directory_of_any_name(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / place
    words = ["--home", str(home), "schedule"]
    data = settings(str(write_sentences(tmp_path / "a.csv", 20)), NAME)
    assert cli.main([*words, "create", "nightly", "--cron", "0 3 * * *", *data]) == 0
    assert cli.main([*words, "pause", "nightly"]) == 0
    assert cli.main([*words, "list"]) == 0
    assert "nightly   PAUSED" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", place}, "nothing is written elsewhere"
    assert (home / "schedules" / "jobs.db").is_file()
