"""Checks: each finds what it is for and nothing else, all findings come at once, each with what to do about it."""

import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_sentences

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.recipe import Recipe
from xlnet_pipeline import cli
from xlnet_pipeline.images import references as images
from xlnet_pipeline.placement.machines import machine
from xlnet_pipeline.planning import check
from xlnet_pipeline.planning.check import findings, require
from xlnet_pipeline.planning.planned_run import PlannedRun

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"127.0.0.1:1/xlnet@{DIGEST}"  # a registry that cannot be asked


@pytest.fixture
def recipe(small_csv: Path) -> Recipe:
    return recipes.tiny().replace(data={"train": str(small_csv), "max_length": 32})


def remote(recipe: Recipe, **changes: Any) -> PlannedRun:
    """A run on Vertex AI of data that it could read."""
    given = {"target": "vertex", "machine": machine("l4"), "image": IMAGE, "pipeline_root": "gs://bucket/root"}
    demo = recipe.replace(data={"train": "demo:uci_sentences", "format": "tsv", "header": "no", "text": 0, "label": 1})
    return PlannedRun(**{"recipe": demo, **given, **changes})


def problems(submission: PlannedRun) -> list[str]:
    return [str(one) for one in findings(submission)]


def test_nothing_is_found_where_nothing_is_wrong(recipe: Recipe) -> None:
    assert problems(PlannedRun(recipe)) == []
    assert problems(remote(recipe)) == []
    assert problems(remote(recipe, machine=machine("v5e-4"), cron="0 3 * * mon-fri", timezone="Europe/Berlin")) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": "txt"}, "columns: '.*' has no column 'txt'; it has: text, label; did you mean 'text'"),
        (
            {"label": "text"},
            "columns: data.label has .* different values in 200 rows, too few of each .*; set data.label to the column",
        ),
        ({"train": "nowhere.csv"}, "columns: data.train: 'nowhere.csv' matches no file"),
        ({"format": "jsonl"}, "columns: 201 of 201 rows cannot be used: not JSON .201.; first: .*.csv:1: not JSON"),
        (
            {"task": "regression", "label": "text"},
            "columns: 200 of 200 rows cannot be used: label is not a number .200.; first: .*:2: ",
        ),
        ({"max_length": 8}, "truncation: 100% of the first texts reach data.max_length = 8 tokens and are cut; raise"),
    ],
)
def test_the_recipe_is_compared_with_the_real_rows(recipe: Recipe, changes: dict[str, Any], says: str) -> None:
    (found,) = findings(PlannedRun(recipe.replace(data=changes)))
    assert re.match(says, str(found))
    assert found.fatal == (not says.startswith("truncation"))


@pytest.mark.parametrize("rows", [50, 300])
def test_one_class_alone_is_refused_however_many_rows_there_are(tmp_path: Path, rows: int) -> None:
    file = tmp_path / "one.csv"
    file.write_text("text,label\n" + "".join(f"good film {i},1\n" for i in range(rows)))
    submission = PlannedRun(recipes.tiny().replace(data={"train": str(file)}))
    assert problems(submission) == ["columns: data.label has one class only, '1'; training needs two or more"]


def test_of_a_large_input_the_first_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("text,label\n" + "".join(f"good film {i},1\n" for i in range(50)))
    large = PlannedRun(recipes.tiny().replace(data={"train": str(file)}), whole=100)
    (found,) = findings(large)
    assert "is '1' in all of the first 50 rows" in str(found)
    assert not found.fatal, "the rest was not read"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"machine": machine("h200")},
            "machine: machine 'h200' is not offered on target 'vertex'; .* 'h200-8'",
        ),
        ({"machine": machine("h100")}, "machine: machine 'h100' is sold on spot and flex-start only"),
        ({"nodes": 0}, "machine: --nodes is 0"),
        (
            {"machine": machine("v5e-4"), "nodes": 4},
            "topology: 4 slices 'v5e-4' are not one slice .* 'v5e-16'",
        ),
        ({"image": ""}, "image: target 'vertex' has no image .*; give --image REGISTRY/NAME@sha256"),
        ({"image": "127.0.0.1:1/xlnet:latest"}, "image: image '127.0.0.1:1/xlnet:latest' is not pinned"),
        ({"pipeline_root": "bucket/root"}, "pipeline root: pipeline root 'bucket/root' is not a URI; name it gs://"),
        (
            {"cron": "0 3 * * 1", "timezone": "Europe/Berlim"},
            "schedule: timezone 'Europe/Berlim' is unknown; .*; did you mean 'Europe/Berlin'",
        ),
    ],
)
def test_what_the_target_cannot_do_is_refused(recipe: Recipe, changes: dict[str, Any], says: str) -> None:
    found = [one for one in problems(remote(recipe, **changes)) if not one.startswith("batch")]
    assert len(found) == 1
    assert re.match(says, found[0])


def test_hosts_of_one_slice_are_taken_and_several_slices_refused(recipe: Recipe) -> None:
    slice_of_hosts = replace(remote(recipe, target="kfp", machine=machine("v5e-16")), recipe=recipe)
    assert not any(one.startswith("machine:") for one in problems(slice_of_hosts))
    found = problems(replace(slice_of_hosts, nodes=2))
    assert any(one.startswith("machine: --nodes is 2, but TPUs train together within one slice") for one in found)


def test_local_is_one_machine(recipe: Recipe) -> None:
    assert problems(PlannedRun(recipe, nodes=2)) == [
        "machine: target 'local' is this machine alone, without --nodes; leave it out, or choose --target kfp or vertex"
    ]


@pytest.mark.parametrize(
    ("tokens", "length", "name", "says"),
    [
        (16, 32, "l4", "batch and length: training.batch_tokens = 16 is less than data.max_length = 32; raise"),
        (1001, 32, "l4-4", "batch and replicas: training.batch_tokens = 1,001 cannot be divided by 4 accelerators"),
        (512, 128, "l4-8", "batch and replicas: 8 accelerators get 64 tokens each, less than data.max_length = 128"),
        (4096, 128, "l4-8", ""),
    ],
)
def test_batches_hold_the_texts_of_every_replica(
    recipe: Recipe, tokens: int, length: int, name: str, says: str
) -> None:
    changed = recipe.replace(training={"batch_tokens": tokens}, data={"max_length": length})
    found = [one for one in problems(remote(changed, machine=machine(name))) if one.startswith("batch")]
    assert [one[: len(says)] for one in found] == ([says] if says else [])


def test_memory_is_refused_where_it_cannot_suffice(recipe: Recipe) -> None:
    huge = recipe.replace(model={"n_layer": 24, "d_model": 2048, "d_head": 128, "n_head": 16, "d_inner": 8192})
    (found,) = problems(remote(huge, machine=machine("t4")))
    assert found.startswith("memory: a step needs about ")
    assert "'t4' has 15 in each chip" in found
    tight = recipe.replace(model={"n_layer": 24}, training={"batch_tokens": 62_000})
    (close,) = findings(remote(tight, machine=machine("t4")))
    assert not close.fatal
    assert "tokens are safe" in close.problem


def test_disk_must_hold_the_checkpoints(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e6})())
    (found,) = problems(PlannedRun(recipe, home=tmp_path / "not" / "there"))
    assert found.startswith("disk: checkpoints need 0.0 GB and the disk of ")
    assert found.endswith("has 0.0 GB free; free some, or choose another --home")


@pytest.mark.parametrize(
    "text", ["* * * * *", "0 3 * * 1", "*/15 0-6,22 1 jan-mar,12 *", "0 0 29 2 *", "5/10 * * * mon", "@daily"]
)
def test_good_schedules_pass(recipe: Recipe, text: str) -> None:
    assert problems(PlannedRun(recipe, cron=text, timezone="Europe/Berlin")) == []


@pytest.mark.parametrize(
    "text", ["0 3 * *", "0 0 3 * * 1", "60 3 * * *", "0 3 0 * *", "0 3 * foo *", "0 0 31 2 *", "@reboot"]
)
def test_bad_schedules_are_refused(recipe: Recipe, text: str) -> None:
    (found,) = problems(PlannedRun(recipe, cron=text))
    assert found.startswith(f"schedule: cron '{text}'")


def test_everything_is_told_at_once(recipe: Recipe) -> None:
    wrong = remote(recipe.replace(training={"batch_tokens": 16}), machine=machine("h200"), image="x", cron="soon")
    found = findings(wrong)
    assert [one.check for one in found] == ["machine", "image", "schedule", "batch and length"]
    with pytest.raises(UserError) as raised:
        require(wrong)
    assert len(str(raised.value).split("\nerror: ")) == 3


def test_every_check_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    assert [one.name for one in check.CHECKS if f"| {one.name} | " not in page] == []


def test_warnings_do_not_stop_a_run(recipe: Recipe) -> None:
    (found,) = require(PlannedRun(recipe.replace(data={"max_length": 8})))
    assert found.check == "truncation"


class _Registry(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response({"there": 200, "secret": 401}.get(self.path.split("/")[2], 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def registry() -> Iterator[str]:
    """Address of a registry with one image that everybody may see and one that nobody may."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_registry_is_asked_for_the_image(recipe: Recipe, registry: str) -> None:
    assert images.exists(f"{registry}/there@{DIGEST}") is True
    assert images.exists(f"{registry}/there:v1@{DIGEST}") is True
    assert images.exists(f"{registry}/gone@{DIGEST}") is False
    assert images.exists(f"{registry}/secret@{DIGEST}") is None
    assert images.exists(f"127.0.0.1:1/there@{DIGEST}") is None
    assert images.exists(f"hubname@{DIGEST}") is None
    (found,) = problems(remote(recipe, image=f"{registry}/gone@{DIGEST}"))
    gone = f"image: image '{registry}/gone@{DIGEST}' is not in its registry"
    assert found == f"{gone}; push it, or name another with --image"


def test_command_prints_all_and_answers_with_its_status(
    tmp_path: Path, small_csv: Path, capsys: pytest.CaptureFixture[str], isolated_state: Path
) -> None:
    assert cli.main(["check", "--set", f"data.train={small_csv}", "--set", "data.max_length=32"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("checks: all well\n")
    head, *rows, blank, _ = printed.out.splitlines()
    assert head.split() == ["text", "label"]
    assert (len(rows), blank) == (3, ""), "the first rows as they are read"
    bad = write_sentences(tmp_path / "bad.csv")
    assert cli.main(["check", "--set", f"data.train={bad}", "--set", "data.text=review", "--cron", "x"]) == 2
    printed = capsys.readouterr()
    assert printed.out.endswith("checks: 2 wrong, 0 to watch\n")
    assert [line.split(":")[:2] for line in printed.err.splitlines()] == [["error", " columns"], ["error", " schedule"]]
    assert not isolated_state.exists()


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of an installation that nobody answers for: what is refused must be refused before it is asked."""
    for name, value in {"ENDPOINT": "http://127.0.0.1:1", "PIPELINE_ROOT": "gs://bucket/root"}.items():
        monkeypatch.setenv(f"KFP_{name}", value)
    monkeypatch.setenv("XLNET_IMAGE", IMAGE)


def test_every_submit_is_checked(kfp: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--target", "kfp", "--machine", "h200", "--set", "evaluation.metric=pearson"]
    assert cli.main(asked) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", "metric"], ["error", "machine"]]


def test_auto_takes_the_machine_that_plan_would(kfp: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--target", "kfp", "--machine", "auto", "--set", "data.text=9"]) == 2
    assert "has 2 columns" in capsys.readouterr().err, "plan reads the data too"
    heavy = ["--set", "model.preset=base", "--set", "training.epochs=100", "--deadline", "2h"]
    assert cli.main(["run", "--target", "kfp", "--machine", "auto", *heavy, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert " is the cheapest that fits within 2.0 h (takes " in printed.err
    assert "cloud.google.com/gke-" in printed.out


def test_settings_of_the_recipe_file_are_used(
    small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLNET_IMAGE", raising=False)
    text = f'[data]\ntrain = "{small_csv}"\n[target.kfp]\nimage = "x:latest"\npipeline_root = "bucket"\n'
    (tmp_path / "recipe.toml").write_text(text)
    assert cli.main(["check", str(tmp_path / "recipe.toml"), "--target", "kfp"]) == 2
    told = capsys.readouterr().err
    assert "image: image 'x:latest' is not pinned" in told
    assert "pipeline root: pipeline root 'bucket' is not a URI" in told
