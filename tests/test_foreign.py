"""Nothing foreign is deleted, nothing is written outside, and no password is kept."""

import json
import os
import stat
from pathlib import Path

import pytest

from xlnet import provenance
from xlnet.__main__ import main as trainer
from xlnet.data import objects
from xlnet.errors import UserError
from xlnet.recipe import Recipe, from_json
from xlnet.redaction import holds_secret, redacted
from xlnet.training.checkpoint import whole
from xlnet.training.storehouse import Storehouse
from xlnet_pipeline import cli
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

    with pytest.raises(UserError, match=r"no step wrote, such as 'thesis.tex'.*; what was made lies in") as caught:
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


def test_files_of_others_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "values.yaml"
    for foreign in (b"mine: true\n", b"\xff\xfe", b"pipelineInfo:\n  name: xlnet\n"):
        place.write_bytes(foreign)
        assert cli.main(["compile", "-o", str(place)]) == 2
        assert "was not written by this command; name another file" in capsys.readouterr().err
        assert place.read_bytes() == foreign
    place.unlink()
    assert [cli.main(["compile", "-o", str(place)]) for _ in range(2)] == [0, 0], "its own is written anew"


NAMES = ["../x", "a/../../x", "/etc/x", "a//b", "./x", "a\\..\\x", "..", "a/\0b", "a/.."]


@pytest.mark.parametrize("name", NAMES)
def test_an_objects_name_stays_below_its_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blob:
        def __init__(self, name: str) -> None:
            self.name = name

    fetched: list[Path] = []
    monkeypatch.setattr(objects, "listing", lambda uri: [Blob("model/good"), Blob(f"model/{name}")])
    monkeypatch.setattr(objects, "fetch", lambda blob, path: fetched.append(path))
    with pytest.raises(UserError, match="cannot be a file's"):
        objects.download("gs://bucket/model", tmp_path / "copy")
    assert not fetched
    monkeypatch.setenv("XLNET_GCS_MOUNT", str(tmp_path / "mount"))
    assert objects.mounted(f"gs://bucket/{name}") is None


@pytest.mark.parametrize(
    "manifest", ['{"../../secret": [1, 2]}', '{"/etc/passwd": [1, 2]}', '["a"]', '{"best-/../x": 1}']
)
def test_a_manifest_names_files_beside_it(tmp_path: Path, manifest: str) -> None:
    folder = tmp_path / "place" / "step-00000001-best-00000000"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    said: list[str] = []
    assert list(whole(Storehouse(str(tmp_path / "place")), said.append)) == []
    assert "is damaged and not used" in said[0]


SECRETS = {
    "http://user:hunter2@h/x": "http://h/x",
    "https://hunter2@h": "https://h",
    "postgresql+psycopg://u:hun@ter2@h:1/d": "postgresql+psycopg://h:1/d",
    "failed: http://u:hunter2@h/p and http://v:hunter2@k": "failed: http://h/p and http://k",
    "mysql://h/d?charset=x&password=hunter2": "mysql://h/d?charset=x&password=***",
    "https://h/o?X-Amz-Signature=hunter2&a=b": "https://h/o?X-Amz-Signature=***&a=b",
    "https://h/o?access_token=hunter2": "https://h/o?access_token=***",
}


@pytest.mark.parametrize("address", SECRETS)
def test_an_address_is_shown_without_its_secret(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert redacted(address) == SECRETS[address]
    assert redacted({"a": [address], "b": (1, address)}) == {"a": [SECRETS[address]], "b": (1, SECRETS[address])}
    assert holds_secret(address)
    assert not holds_secret(SECRETS[address].replace("***", ""))
    for field in ("registry.uri", "data.train", "model.pretrained"):
        assert cli.main(["check", "--set", f"{field}={address}"]) == 2
        assert "hunter2" not in "".join(capsys.readouterr())
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
