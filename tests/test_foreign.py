"""Nothing foreign is deleted, nothing is written outside, and no password is kept."""

import io
import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from servers.strict_storage import StrictStorage

from xlnet import provenance
from xlnet.__main__ import main as trainer
from xlnet.data import objects
from xlnet.errors import UserError
from xlnet.recipe import Recipe, from_json
from xlnet.redaction import holds_secret, redacted
from xlnet.training.checkpoint import complete
from xlnet.training.checkpoint_store import CheckpointStore
from xlnet_pipeline import cli
from xlnet_pipeline.targets import processes
from xlnet_pipeline.targets.local.cache import Cache


def artifact(path: Path, kind: str = "model") -> None:
    """A small artifact."""
    with provenance.writing(path, kind) as folder:
        (folder / "content").write_text(kind)
        provenance.record(
            folder, type=kind, step="train", started=provenance.now(), parameters={}, metadata={"uri": "http://u:p@h"}
        )


def thesis(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years of work")


def changed(folder: Path) -> None:
    artifact(folder)
    (folder / "notes.txt").write_text("put beside it")


def half(folder: Path) -> None:
    folder.mkdir()
    (folder / "lineage.json").write_text("{}")


FOREIGN = {
    "holds files that no step wrote, such as 'thesis.tex'": thesis,
    "was changed since a step wrote it": changed,
    "holds files that no step wrote, such as 'lineage.json'": half,
    "is a file": lambda path: path.write_text("a file"),
    "is a dataset, which a model must not replace": lambda path: artifact(path, "dataset"),
    "cannot be written|is a file": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_only_an_artifact_of_the_same_type_is_replaced(tmp_path: Path, message: str) -> None:
    place = tmp_path / "out"
    FOREIGN[message](place)
    before = sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(UserError, match=message):
        artifact(place)
    assert sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_what_is_replaced_and_what_comes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for place in ("new/below", "link", "link", "new/below"):
        artifact(tmp_path / place)
    assert (tmp_path / "link").is_symlink()
    assert provenance.verify(tmp_path / "real")

    def write_for_hours() -> None:
        with provenance.writing(tmp_path / "late", "model") as folder:
            (folder / "weights").write_text("made for hours")
            thesis(tmp_path / "late")

    with pytest.raises(UserError, match=r"no step wrote, such as 'thesis.tex'.*; this step's result is in") as caught:
        write_for_hours()
    kept = Path(str(caught.value).split("'")[-2])
    assert (kept / "weights").read_text() == "made for hours"
    assert (tmp_path / "late" / "thesis.tex").exists()


def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for place in (".", "..", "../../here"):
        with pytest.raises(UserError, match="is the working directory, or holds it"):
            artifact(Path(place))


@pytest.mark.parametrize("step", ["preprocess", "train", "evaluate", "register", "export"])
def test_every_step_spares_a_thesis_before_it_works(
    step: str, tmp_path: Path, trained, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thesis"
    thesis(out)
    given = {"dataset": trained.dataset, "model": trained.model, "evaluation": trained.evaluation}
    needs = {"train": ["dataset"], "evaluate": ["dataset", "model"], "register": list(given), "export": ["dataset"]}
    words = [word for name in needs.get(step, []) for word in (f"--{name}", str(given[name]))]
    recipe = [] if step == "export" else ["--recipe-json", trained.recipe.to_json()]
    if step == "export":
        words = [str(tmp_path / "checkpoints"), *words]
    assert trainer([step, *words, *recipe, "--out", str(out)]) == 2
    assert step == "export" or "holds files that no step wrote" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_every_place_with_files_of_others_is_spared(
    tmp_path: Path, trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The input's directory, home, the root, a link to a directory, a link to a file, an artifact with notes in it."""
    data, home, kept = tmp_path / "data", tmp_path / "me", tmp_path / "kept"
    for folder in (data, home, kept / "logs"):
        folder.mkdir(parents=True)
        (folder / "thesis.tex").write_text("three years of work")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "file").symlink_to(data / "thesis.tex")
    (tmp_path / "work").mkdir()
    artifact(tmp_path / "model", "dataset")
    (tmp_path / "model" / "logs").mkdir()
    (tmp_path / "model" / "logs" / "notes.txt").write_text("of my own")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    before = sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    words = ["preprocess", "--recipe-json", trained.recipe.to_json()]
    for place in ("../data", "..", ".", "/", str(home), "../link", "../file", "../kept", "../model", "../file/below"):
        assert trainer([*words, "--out", place]) == 2, place
        shown = capsys.readouterr().err
        assert shown.startswith("error: "), place
        assert shown.count("\n") == 1, place
        assert sorted((str(path), path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_init_and_lineage_spare_what_is_there(
    tmp_path: Path, trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uci_sentences").symlink_to(trained.dataset)
    assert cli.main(["init"]) == 2
    (tmp_path / "uci_sentences").unlink()
    (tmp_path / "recipe.toml").write_text("mine")
    assert cli.main(["init"]) == 2
    assert "'recipe.toml' exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
    place = tmp_path / "page.html"
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to(place)
    for foreign in (b"<html>mine</html>", b"\xff\xfe", b"a, b"):
        place.write_bytes(foreign)
        for name in ("page.html", "link.html", "folder.html"):
            assert cli.main(["lineage", str(trained.model), "--html", name]) == 2
        assert "was not written by this command; name another file" in capsys.readouterr().err
        assert place.read_bytes() == foreign
    place.unlink()
    assert [cli.main(["lineage", str(trained.model), "--html", "page.html"]) for _ in range(2)] == [0, 0]


def test_files_of_others_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "values.yaml"
    for foreign in (b"mine: true\n", b"\xff\xfe", b"pipelineInfo:\n  name: xlnet\n"):
        place.write_bytes(foreign)
        assert cli.main(["compile", "-o", str(place)]) == 2
        assert "was not written by this command; name another file" in capsys.readouterr().err
        assert place.read_bytes() == foreign
    place.unlink()
    assert [cli.main(["compile", "-o", str(place)]) for _ in range(2)] == [0, 0], "its own is written anew"


def test_an_objects_name_stays_below_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server whose bucket holds such names; what was named well beside them is not fetched either."""
    names = ["../x", "a/../../x", "/etc/x", "a//b", "./x", "a\\..\\x", "..", "a/.."]
    with StrictStorage("bucket") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        for number, name in enumerate(names):
            for one in ("good", name):
                server.put("bucket", {"name": f"{number}/model/{one}"}, b"content", {})
        for number, name in enumerate(names):
            with pytest.raises(UserError, match="cannot be a file's"):
                objects.download(f"gs://bucket/{number}/model", tmp_path / "below" / "copy")
            assert not (tmp_path / "below").exists(), name
    monkeypatch.setenv("XLNET_GCS_MOUNT", str(tmp_path / "mount"))
    for name in (*names, "a/\0b"):
        assert objects.mounted(f"gs://bucket/{name}") is None, name


@pytest.mark.parametrize(
    "manifest", ['{"../../secret": [1, 2]}', '{"/etc/passwd": [1, 2]}', '["a"]', '{"best-/../x": 1}']
)
def test_a_manifest_names_files_beside_it(tmp_path: Path, manifest: str) -> None:
    folder = tmp_path / "place" / "step-00000001-best-00000000"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    said: list[str] = []
    assert list(complete(CheckpointStore(str(tmp_path / "place")), said.append)) == []
    assert "is damaged and not used" in said[0]


SECRETS = {
    "http://user:hunter2@h/x": "http://h/x",
    "https://hunter2@h": "https://h",
    "postgresql+psycopg://u:hun@ter2@h:1/d": "postgresql+psycopg://h:1/d",
    "failed: http://u:hunter2@h/p and http://v:hunter2@k": "failed: http://h/p and http://k",
    "mysql://h/d?charset=x&password=hunter2": "mysql://h/d?charset=x&password=***",
    "https://h/o?X-Amz-Signature=hunter2&a=b": "https://h/o?X-Amz-Signature=***&a=b",
    "https://h/o?access_token=hunter2": "https://h/o?access_token=***",
    "postgresql://u:hun/ter2?#@h/d": "postgresql://h/d",
    "http://u:hun'ter2@h": "http://h",
}


@pytest.mark.parametrize("address", SECRETS)
def test_an_address_is_shown_without_its_secret(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert redacted(address) == SECRETS[address]
    assert redacted({"a": [address], "b": (1, address)}) == {"a": [SECRETS[address]], "b": (1, SECRETS[address])}
    assert holds_secret(address)
    assert not holds_secret(SECRETS[address].replace("***", ""))
    for field in ("registry.uri", "data.train", "model.pretrained"):
        assert cli.main(["check", "--set", f"{field}={address}"]) == 2
        shown = "".join(capsys.readouterr())
        assert "hunter2" not in shown
        assert ("MLFLOW_TRACKING_URI" in shown) == (field == "registry.uri"), "what to set instead goes with the field"
    with pytest.raises(UserError, match="was given with a password"):
        from_json(json.dumps({"registry": {"uri": address}}))


@pytest.mark.parametrize(
    "address",
    [
        "gs://b/o",
        "sqlite:////x/a@b.db",
        "http://h:1/p@q",
        "me@example.org",
        "postgresql://bob@h/d",
        "a?token=b",
        "demo:x",
        "http://[::1]:80/p@q",
        "http://h:80?x=a@b",
        "sqlite:///c:/a@b.db",
    ],
)
def test_what_is_no_secret_may_stand_in_a_recipe(address: str) -> None:
    assert not holds_secret(address)
    assert Recipe().replace(registry={"uri": address}).registry.uri == address


def test_lineage_and_cache_hold_no_password(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    assert provenance.read(tmp_path / "a")["artifact"]["metadata"] == {"uri": "http://h"}
    cache = Cache(tmp_path / "cache", lambda step: {})
    parts = {"step": "train", "code": "", "parameters": {}, "inputs": {}}
    old = os.umask(0)
    try:
        cache.put("train-1", parts, {}, {}, "run")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "cache" / "train-1.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("live", [None, lambda text: None], ids=["piped", "on a terminal"])
def test_what_a_library_prints_is_kept_without_passwords(live) -> None:
    """Whatever a step prints goes through one place, in pieces or whole, into the log and to the user."""
    code = (
        "import sys, time\n"
        "for part in ('to http://user:hun', 'ter2@h/x\\n', 'GET /o?X-Amz-Signature=hunter2&a=b\\n',"
        " 'postgresql://u:hunter2@k', ' \\x1b[31mred\\x07'):\n"
        "    sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.1)"
    )
    log, lines = io.BytesIO(), list[str]()
    assert (
        processes.run(
            [sys.executable, "-c", code], {}, processes.Watch(log, lines.append, processes.Cancellation(), live)
        )
        == 0
    )
    assert lines == ["to http://h/x", "GET /o?X-Amz-Signature=***&a=b", "postgresql://k red\\x07"]
    kept = log.getvalue().replace(b"\r", b"").decode().splitlines()
    assert kept == [*lines[:2], "postgresql://k \x1b[31mred\x07"]


LONG = {"x": 500_000, "://a:": 20_000, "?": 500_000, "?password": 20_000}


@pytest.mark.parametrize("text", [part * count + "=://" for part, count in LONG.items()], ids=LONG)
def test_long_lines_are_looked_through_in_time(text: str) -> None:
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 20


def test_a_dead_store_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through every command that asks the registry; a run ends before it has begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    for words in (["models", "list"], ["check"], ["run"], ["predict", "reviews", "a text"]):
        assert cli.main(words) in (1, 2)
        shown = "".join(capsys.readouterr())
        assert "registry 'http://127.0.0.1:9' does not answer" in shown
        assert "hunter2" not in shown
    assert not list((tmp_path / "home").glob("runs/*"))
