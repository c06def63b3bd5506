"""The command line: what it says to right and wrong words, how fast it answers, and the exit status it leaves."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import Trained, write_sentences

from xlnet import recipe as recipes
from xlnet.registry import ModelVersion, open_registry
from xlnet_pipeline import __main__, cli
from xlnet_pipeline.commands import completion, tables
from xlnet_pipeline.commands.run import load
from xlnet_pipeline.planning import check
from xlnet_pipeline.reference import recipe as recipe_reference
from xlnet_pipeline.targets import record
from xlnet_pipeline.targets.local.target import LocalTarget
from xlnet_pipeline.targets.record import Run, RunFailure, StepRun

COMMAND = [sys.executable, "-m", "xlnet_pipeline"]
TINY = [
    word
    for setting in ("data.max_length=24", "model.n_layer=1", "model.d_model=16", "model.n_head=1", "model.d_head=16")
    for word in ("--set", setting)
]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from xlnet_pipeline import cli\n"
        "try: cli.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "names = {'kfp', 'torch', 'mlflow', 'transformers', 'numpy', 'pyarrow', 'google.cloud.storage'}\n"
        "heavy = names & sys.modules.keys()\n"
        "print('heavy:', sorted(heavy))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("heavy: []\n")


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert __main__.main() == 2
    assert (
        capsys.readouterr().err == "error: Windows is not supported; use WSL: wsl --install, and then install there\n"
    )


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_shells_complete_commands_options_and_values(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    for word in ("promote", "deadline", "docker"):
        assert word in script.read_text(), f"{shell} knows commands, options and values"
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ru", "run runs"),
        ("models pro", "promote"),
        ("run --target k", "kfp"),
        ("run --no-ca", "--no-cache"),
        ("run reci", "recipe.toml"),
        ("completion ", "bash zsh fish"),
    ],
)
def test_bash_completes_what_was_begun(
    words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "recipe.toml").touch()
    *before, begun = ["xlnet-pipeline", *words.split(" ")]
    program = (
        f"source ./script; COMP_WORDS=({' '.join(before)} '{begun}'); COMP_CWORD={len(before)}; "
        f"_shtab_xlnet_pipeline xlnet-pipeline '{begun}' {before[-1]}; echo \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


def test_help_takes_half_a_second_of_processor_time() -> None:
    times = []  # processor time: on a busy machine the clock measures the others
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*COMMAND, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rnu", "unknown command 'rnu'; allowed: init, run, .*; did you mean 'run'?"),
        ("runs lst", "unknown command 'lst'; .*; did you mean 'list'?"),
        ("run --ste training.steps=1", "unknown option '--ste'; did you mean '--set'?; see: .* run --help"),
        ("--hom x runs list", "unknown option '--hom'; did you mean '--home'?"),
        ("run a.toml b.toml", "unexpected 'b.toml'; see: xlnet-pipeline run --help"),
        ("run --target vertx", "unknown --target 'vertx'; allowed: local"),
        ("run --timeout soon", ".*'soon' is not a number of seconds above 0"),
        ("run --timeout nan", ".*'nan' is not a number of seconds above 0"),
        ("run --set training.stps=5", "unknown field 'training.stps'; did you mean 'training.steps'?"),
        ("run --set training.steps=many", "training.steps is 'many'; allowed: a whole number"),
        ("run --set trainingsteps", "--set 'trainingsteps' is not section.field=value"),
        ("run nothing.toml", "recipe 'nothing.toml' does not exist; write one with: xlnet-pipeline init"),
        (
            "run reviews.csv.gz",
            "'reviews.csv.gz' is not a recipe; to train on it type: .* data.train=reviews.csv.gz",
        ),
        ("run --set data.train=[]", "the recipe names no data: .*--set data.train=FILE.csv"),
        ("runs show abcd", "run 'abcd' is unknown in .*; there are no runs yet"),
        ("runs", ".*required: COMMAND; see: xlnet-pipeline runs --help"),
        ("compile -o pipeline.txt", "output 'pipeline.txt' is not a YAML file"),
        ("lineage x --json --html y", ".*not allowed with argument"),
        ("predict ./missing hello", "there is no model directory './missing'"),
        ("--home gs://bucket runs list", "home 'gs://bucket' is a URI"),
        ("", "no command was given; see: xlnet-pipeline --help"),
    ],
)
def test_mistakes_get_one_line_and_status_2(
    words: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.match("error: " + expected.replace("?", r"\?"), shown.err), shown.err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_home_is_understood_before_and_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], isolated_state: Path
) -> None:
    for words in (
        ["--home", str(tmp_path / "here"), "runs", "list"],
        ["runs", "list", "--home", str(tmp_path / "here")],
    ):
        assert cli.main(words) == 0
        assert f"no runs in '{tmp_path / 'here'}'" in capsys.readouterr().out
    assert cli.main(["runs", "list"]) == 0
    assert str(isolated_state) in capsys.readouterr().out


@pytest.mark.parametrize(("word", "device"), [("gpu", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_a_gpu_is_the_device_cuda(word: str, device: str) -> None:
    assert cli.parser().parse_args(["run", "--device", word]).device == device


def test_recipe_of_settings_alone_takes_nothing_from_the_demo(tmp_path: Path) -> None:
    demo = load(None, ["training.epochs=1"])
    assert demo.data.train == ("demo:uci_sentences",)
    assert demo.training.epochs == 1.0
    own = load(None, [f"data.train={tmp_path / 'a.csv'}"])
    assert own == recipes.tiny().replace(data={"train": str(tmp_path / "a.csv")})


def test_init_writes_the_demo_with_every_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "work"]) == 0
    assert "next: xlnet-pipeline run work/recipe.toml" in capsys.readouterr().out
    written = load("work/recipe.toml", [])
    data = {"train": str(tmp_path / "work" / "uci_sentences" / "*.txt")}
    assert written == load(None, []).replace(data=data)
    assert len(list(tmp_path.glob("work/uci_sentences/*.txt"))) == 3
    assert (tmp_path / "work/uci_sentences/SOURCE.md").is_file(), "the licence asks to name the source"
    text = (tmp_path / "work/recipe.toml").read_text()
    fields = re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)
    assert fields == [name.split(".")[1] for name in recipes.field_names()]


def test_init_overwrites_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 2
    assert f"'{recipe}' exists; name another directory, or overwrite it with --force" in capsys.readouterr().err
    assert recipe.read_text() == "mine"
    assert cli.main(["init", str(tmp_path), "--force"]) == 0
    assert "mine" not in recipe.read_text()


def test_every_commented_default_is_valid_once_uncommented() -> None:
    text = recipe_reference.commented_toml({}, "title")
    lines = [re.sub(r"^# (\w+ = )", r"\1", line) for line in text.splitlines()]
    assert recipes.from_changes(tomllib.loads("\n".join(lines))) == recipes.tiny().replace(
        data={"text_pair": "column", "id": "column"}
    )


def test_every_field_has_a_meaning() -> None:
    assert list(recipe_reference.MEANINGS) == recipes.field_names()


def written_run(home: Path, number: int, **fields: object) -> Run:
    """A closed record as the local target leaves it."""
    moment = f"2026-01-0{number}T10:00:00.000+00:00"
    ended = f"2026-01-0{number}T10:01:07.000+00:00"
    steps = [StepRun(name) for name in ("snapshot", "preprocess", "train", "evaluate", "register")]
    run = Run(f"2026010{number}-100000-abc{number}", "local", {}, "sha256:1", moment, ended=ended, steps=steps)
    for name, value in fields.items():
        setattr(run, name, value)
    (home / "runs" / run.id / "logs").mkdir(parents=True)
    record.write(run, home / "runs" / run.id / "run.json")
    return run


def test_runs_list_and_show(isolated_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"rows": 10, "primary": "accuracy", "metrics": {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.9}}}
    evaluation = isolated_state / "evaluation"
    evaluation.mkdir(parents=True)
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    good = written_run(isolated_state, 1, status=record.SUCCEEDED)
    good.step("evaluate").outputs = {
        "evaluation": {"uri": str(evaluation), "type": "t", "digest": "sha256:2", "metadata": {}}
    }
    record.write(good, isolated_state / "runs" / good.id / "run.json")
    failure = RunFailure("train", "loss became nan", "run", ["step 7/80"])
    written_run(isolated_state, 2, status=record.FAILED, error=failure)

    assert cli.main(["runs", "list"]) == 0
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "STATUS", "STARTED", "DURATION", "MODEL", "METRIC"]
    assert newest.split()[:2] == ["20260102-100000-abc2", "FAILED"]
    assert oldest.split()[:2] == ["20260101-100000-abc1", "SUCCEEDED"]
    assert oldest.endswith("accuracy 0.7500")
    assert oldest.index("accuracy") == header.index("METRIC")
    assert "1 min 07 s" in oldest

    assert cli.main(["runs", "list", "--json"]) == 0
    assert [run["status"] for run in json.loads(capsys.readouterr().out)] == ["FAILED", "SUCCEEDED"]
    assert cli.main(["runs", "show", "abc2"]) == 0
    assert "error in train: loss became nan\n  | step 7/80" in capsys.readouterr().out
    assert cli.main(["runs", "show", "abc1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == good.id


def test_logs_of_a_step(isolated_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written_run(isolated_state, 1, status=record.SUCCEEDED)
    run.step("train").log = "logs/train.log"
    record.write(run, isolated_state / "runs" / run.id / "run.json")
    (isolated_state / "runs" / run.id / "logs/train.log").write_text("step 1\nstep 2\n")
    assert cli.main(["runs", "logs", "abc1", "train"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["step 1", "step 2"]
    assert cli.main(["runs", "logs", "abc1", "trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_a_running_run_says_step_loss_and_time_left(isolated_state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xlnet_pipeline.targets import processes, progress

    alive = {"status": record.RUNNING, "ended": None, "pid": os.getpid()}
    run = written_run(isolated_state, 1, **alive, pid_started=processes.started(os.getpid()))
    run.step("train").status, run.step("train").log = record.RUNNING, "logs/train.log"
    record.write(run, isolated_state / "runs" / run.id / "run.json")
    assert cli.main(["runs", "show", "latest"]) == 0
    assert " left" not in capsys.readouterr().out, "nothing is known yet"
    lines = "training on cpu\nstep 10/80  loss 0.7  900 tokens/s  0:50 left\n"
    lines += "step 20/80  loss 0.6  900 tokens/s  0:40 left\n"
    (isolated_state / "runs" / run.id / "logs" / "train.log").write_text(lines)
    assert cli.main(["runs", "show", "latest"]) == 0
    assert "\nstep 20/80  loss 0.6  900 tokens/s  0:40 left\n" in capsys.readouterr().out
    drawn: list[str] = []
    live = progress.kept(isolated_state / "runs" / run.id / "logs", drawn.append)  # the run's terminal shows a bar
    live("[████····] step 30/80  loss 0.5  900 tokens/s  0:30 left")
    live("[█████···] step 31/80  loss 0.5  900 tokens/s  0:29 left")
    assert len(drawn) == 2
    assert cli.main(["runs", "show", "latest"]) == 0
    assert "\nstep 30/80  loss 0.5  900 tokens/s  0:30 left\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["help", "help run", "runs help", "runs help show", "help models rollback"])
def test_help_is_understood_as_a_word(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 0
    named = " ".join(word for word in words.split() if word != "help")
    assert capsys.readouterr().out.startswith(f"usage: xlnet-pipeline {named}".rstrip())


def test_help_for_what_is_no_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "rum"]) == 2
    assert "unknown command 'rum'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (67, "1 min 07 s"),
        (7500, "2 h 05 min"),
        (1e6, "11 d 13 h"),
        (None, None),
    ],
)
def test_durations(seconds: float | None, words: str | None) -> None:
    assert tables.duration(seconds) == words


def test_colour_is_for_terminals_and_yields_to_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as terminal, open(os.devnull, "w") as file:
        assert tables.coloured(terminal)
        assert not tables.coloured(file)
        monkeypatch.setenv("NO_COLOR", "1")
        assert not tables.coloured(terminal)
    os.close(master)
    plain, painted = (tables.table(["A", "STATUS"], [["x", "FAILED"]], colour) for colour in (False, True))
    assert re.sub(r"\x1b\[\d*m", "", painted[1]) == plain[1]
    assert "\x1b[31m" in painted[1]


def test_closed_pipe_is_no_error(isolated_state: Path) -> None:
    run = written_run(isolated_state, 1, status=record.SUCCEEDED)
    run.step("train").log = "logs/train.log"
    record.write(run, isolated_state / "runs" / run.id / "run.json")
    (isolated_state / "runs" / run.id / "logs/train.log").write_text("a line\n" * 100_000)
    process = subprocess.Popen([*COMMAND, "runs", "logs", "abc1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == cli.BROKEN_PIPE


def test_interrupt_leaves_a_cancelled_run_and_no_traceback(tmp_path: Path, isolated_state: Path) -> None:
    csv = write_sentences(tmp_path / "sentences.csv", rows=60)
    settings = [*TINY, "--set", f"data.train={csv}", "--set", "training.steps=100000", "--set", "training.patience=0"]
    process = subprocess.Popen([*COMMAND, "run", *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.startswith("train: ") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in shown + errors
    assert ": CANCELLED after" in shown
    (path,) = isolated_state.glob("runs/*/run.json")
    assert json.loads(path.read_text())["status"] == "CANCELLED"


def test_user_mistake_inside_a_step_is_status_2(tmp_path: Path) -> None:
    csv = tmp_path / "one.csv"
    csv.write_text("text,label\n" + "fine,1\n" * 30)
    line = [*COMMAND, "run", "--no-check", "--set", f"data.train={csv}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "class" in done.stdout


def test_a_run_is_checked_before_its_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "one.csv"
    csv.write_text("text,label\n" + "fine,1\n" * 30)
    assert cli.main(["run", "--set", f"data.train={csv}"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: columns: data.label has one class only, '1'; training needs two or more\n"
    assert not printed.out, "no step has begun"


def test_the_checks_before_a_run_look_at_the_home_that_is_given(
    tmp_path: Path, small_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(check, "require", lambda given, offline: seen.append(given.home) or [])
    monkeypatch.setattr(LocalTarget, "submit", lambda self, asked, **more: sys.exit(0))
    with pytest.raises(SystemExit):
        cli.main(["--home", str(tmp_path / "other"), "run", "--set", f"data.train={small_csv}"])
    assert seen == [tmp_path / "other"]


def test_time_out_is_status_124(tmp_path: Path) -> None:
    csv = write_sentences(tmp_path / "sentences.csv", rows=60)
    settings = [
        *TINY,
        "--set",
        f"data.train={csv}",
        "--set",
        "training.steps=100000",
        "--set",
        "training.patience=0",
        "--timeout",
        "4",
    ]
    done = subprocess.run([*COMMAND, "run", *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 124
    assert "time limit" in done.stdout


def add_version(name: str, place: str, metric: str) -> ModelVersion:
    tags = {"model_uri": place, "model_digest": f"sha256:{place}", "metric": f"accuracy {metric}", "run": "abc1"}
    return open_registry().add(name, "no champion yet", tags, {"training.seed": "0"}, {"accuracy": float(metric)})


def test_models_list_show_and_promote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    assert re.match("no models in 'sqlite:.*'; train one with: xlnet-pipeline run\n", capsys.readouterr().out)
    for metric in ("0.7000", "0.8000"):
        add_version("reviews", str(tmp_path / metric), metric)

    assert cli.main(["models", "promote", "reviews"]) == 2
    assert "'reviews' names no version; type for example reviews:1" in capsys.readouterr().err
    assert cli.main(["models", "promote", "reviews:2"]) == 0
    assert cli.main(["models", "promote", "reviews@champion"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "reviews:2 is now the champion",
        "reviews:2 is the champion already",
    ]
    assert cli.main(["models", "list"]) == 0
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split() == ["MODEL", "ALIASES", "CREATED", "METRIC", "RUN"]
    assert newest.split()[:2] == ["reviews:2", "champion"]
    assert oldest.split()[:2] == ["reviews:1", "-"]
    assert cli.main(["models", "list", "revews"]) == 2
    assert "did you mean 'reviews'?" in capsys.readouterr().err
    assert cli.main(["models", "show", "reviews"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("model reviews:2  champion\n")
    assert "promoted by hand; the gate had said: no champion yet" in shown
    assert cli.main(["models", "show", "reviews:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"]["metric"] == "accuracy 0.7000"
    assert cli.main(["predict", "reviews", "hello"]) == 2
    assert "which is gone; run its recipe again" in capsys.readouterr().err


def test_a_run_ends_with_what_to_type_next(tmp_path: Path, isolated_state: Path) -> None:
    csv = write_sentences(tmp_path / "sentences.csv", rows=60)
    settings = [*TINY, "--set", f"data.train={csv}", "--set", "training.steps=4", "--set", "registry.name=small"]
    runs = [
        subprocess.run(
            [*COMMAND, "run", "--force", *settings], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        for _ in range(2)
    ]
    assert [done.returncode for done in runs] == [0, 0], runs[0].stdout + runs[0].stderr
    first, second = (done.stdout for done in runs)
    assert re.search(r"^  accuracy +[01]\.\d{4}   95% interval", first, re.MULTILINE)
    assert re.search(r"^  majority +0\.5000   always answering '[01]'", first, re.MULTILINE)
    assert "\nregistered small:1 as champion; the gate: " in first
    report = re.search(r"^report (.*)$", first, re.MULTILINE)
    assert report
    assert (tmp_path / report.group(1)).is_file()
    assert second.count("CACHED") == 4
    assert "\nregistered small:1 as champion" in second

    typed = [line.strip() for line in first.partition("next:\n")[2].splitlines()]
    assert len(typed) == 3
    for line in typed:
        words = shlex.split(line)
        done = subprocess.run([*COMMAND, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "lineage.html").is_file()


def test_predict_with_a_directory(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(trained.model), "a lovely warm film"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-12)


def test_compile_writes_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pipeline.yaml"
    assert cli.main(["compile", "-o", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert "exec-preprocess" in path.read_text()
