"""The plan: figures against exact counts and measurements, the choice of a machine, and what the cache holds."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_sentences

from xlnet import recipe as recipes
from xlnet.data.preprocess import preprocess
from xlnet.data.snapshot import take
from xlnet.errors import UserError
from xlnet.model import config as configs
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.xlnet import XLNetClassifier
from xlnet.recipe import Recipe
from xlnet.training import precision
from xlnet.training.launch import train
from xlnet_pipeline import cli
from xlnet_pipeline.placement import machines
from xlnet_pipeline.placement.machines import Price, machine
from xlnet_pipeline.planning import estimate, plan, preview, this_machine, workload
from xlnet_pipeline.planning.plan import Plan
from xlnet_pipeline.targets import Submission
from xlnet_pipeline.targets.local.target import LocalTarget

WORDS = ["film", "book", "good", "bad", "great", "awful", "plot", "actor", "scene", "story", "long", "short"]

# Measured: the peak of a process that trains, over what it took before, in GiB. Without the threshold the C library
# keeps freed blocks, up to a third more than is in use, which `estimate.USABLE` leaves room for.
MEASURE = """
import sys
import torch
from xlnet.training import precision
from xlnet.training.launch import train
recipe, dataset, out = sys.argv[1:]
open("/proc/self/clear_refs", "w").write("5")
train(recipe, dataset, out)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def long_texts(folder: Path, rows: int, words: int) -> Path:
    """A CSV of texts that all have more tokens than a recipe's limit."""
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(words)) + f",{row % 2}" for row in range(rows)]
    path = folder / "long.csv"
    path.write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    return path


def prepared(recipe: Recipe, folder: Path) -> tuple[str, str]:
    """The recipe's JSON and its dataset."""
    text = recipe.to_json()
    preprocess(text, take(text).digest, str(folder / "dataset"))
    return text, str(folder / "dataset")


def reviews(path: Path, **training: object) -> Recipe:
    return recipes.tiny().replace(data={"train": str(path), "max_length": 32}, training=training)


@pytest.fixture
def recipe(small_csv: Path) -> Recipe:
    return reviews(small_csv)


def planned(recipe: Recipe, home: Path, **options: object) -> Plan:
    return plan.plan(recipe, home, **options)  # type: ignore[arg-type]


# What it needs


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_parameters_are_exact(preset: str) -> None:
    model = recipes.PRESETS[preset]().model
    with torch.device("meta"):
        network = XLNetClassifier(configs.from_recipe(model, 1000, 5, "classification", ["a", "b", "c"]))
    assert estimate.parameters(model, 1000, 3) == sum(one.numel() for one in network.parameters())
    with torch.device("meta"):
        language_model = XLNetLanguageModel(configs.from_recipe(model, 1000, 5, "pretrain", []))
    assert estimate.parameters(model, 1000, 0) == sum(one.numel() for one in language_model.parameters())


def test_the_pretrain_step_is_planned_too(recipe: Recipe, tmp_path: Path) -> None:
    """Its documents, time and memory count; each predicted token has a second stream and logits."""
    alone = planned(recipe, tmp_path, target="local")
    (tmp_path / "corpus.txt").write_text("the film was long and good\n" * 400, encoding="utf-8")
    corpus = ("train", str(tmp_path / "corpus.txt"))
    pretraining = {"corpus": corpus, "steps": 50, "batch_tokens": 4096, "mem_len": 8, "reuse_len": 8}
    both = planned(recipe.replace(pretraining=pretraining), tmp_path, target="local")
    work = both.pretraining
    assert work is not None
    assert (work.steps, work.batch_tokens, work.attended, work.outputs) == (50, 4096, 32 + 8, 0)
    assert work.rows == pytest.approx(0.9 * (alone.work.rows + 400), abs=2)  # a tenth is held back
    before, after = alone.chosen, both.chosen
    assert after.pretraining_hours > 0
    assert after.hours - after.pretraining_hours == pytest.approx(before.hours, rel=0.5)  # the rate is measured twice
    assert after.memory.total > before.memory.total
    assert f"pretraining on {work.rows:,} documents" in both.text()
    assert both.to_dict()["pretraining"]["predicted"] == pytest.approx(1 / 6)
    model = recipe.model
    assert estimate.operations(model, 40, 1 / 6, 1000) > 1.1 * estimate.operations(model, 40)
    limited = planned(recipe.replace(pretraining={**pretraining, "max_minutes": 0.001}), tmp_path, target="local")
    assert limited.chosen.pretraining_hours < after.pretraining_hours


def test_operations_are_those_of_the_design() -> None:
    """24 d² + 6 L d a layer and token forward, three times that: 595 and 2,038 MFLOP at a length of 512."""
    assert estimate.operations(recipes.base().model, 512) / 1e6 == pytest.approx(595, rel=0.01)
    assert estimate.operations(recipes.large().model, 512) / 1e6 == pytest.approx(2038, rel=0.01)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_kept_activations_are_those_that_autograd_keeps(tmp_path: Path, dropout: float) -> None:
    given = reviews(long_texts(tmp_path, 80, 100), steps=1, batch_tokens=2048).replace(
        data={"max_length": 64}, model={"dropout": dropout, "summary_dropout": dropout}
    )
    text, dataset = prepared(given, tmp_path)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(text, dataset, str(tmp_path / "model"))
    work = workload.measure(given)
    sizes = [one.untyped_storage().nbytes() for one in kept.values() if not isinstance(one, torch.nn.Parameter)]
    modelled = 4 * work.batch_tokens * estimate.kept_values(given.model, work.longest, "cpu")
    assert modelled == pytest.approx(sum(sizes), rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("preset", "batch"), [("small", 8192), ("tiny", 16384)])
def test_memory_is_within_15_percent_of_what_is_measured(tmp_path: Path, preset: str, batch: int) -> None:
    length = 256 if preset == "small" else 128
    given = recipes.PRESETS[preset]().replace(
        data={"train": str(long_texts(tmp_path, 400, 2 * length)), "max_length": length},
        training={"steps": 5, "batch_tokens": batch},
    )
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *prepared(given, tmp_path), str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured = int(done.stdout.split()[-1]) / (1 << 20)
    modelled = estimate.memory(given.model, workload.measure(given), machine("cpu")).total
    assert modelled == pytest.approx(measured, rel=0.15)


def test_memory_shrinks_with_chips_to_one_text_each() -> None:
    model, work = recipes.large().model, workload.Workload(20_000, 288.0, 512, 340.0, 32_000, 2, 1000, 35_000, "")
    one, four, many = (estimate.memory(model, work, machine(name)) for name in ("v6e-1", "v6e-4", "v6e-256"))
    assert four.activations == pytest.approx(one.activations / 4)
    assert many.activations == pytest.approx(one.activations * 512 / 35_000)
    assert one.total == one.process + one.weights + one.optimizer + one.best + max(one.gradients, one.activations)
    most = [estimate.most_tokens(model, work, machine(name)) for name in ("v6e-1", "v6e-4")]
    assert most[0] < 35_000 < most[1]
    assert most[1] == pytest.approx(4 * most[0], rel=0.01)
    assert estimate.most_tokens(recipes.large().replace(model={"n_layer": 250}).model, work, machine("t4")) == 0


# How much there is to do


def test_workload_agrees_with_what_preprocessing_finds(tmp_path: Path) -> None:
    given = reviews(write_sentences(tmp_path / "sentences.csv"), epochs=2.0, batch_tokens=256)
    work = workload.measure(given)
    _, dataset = prepared(given, tmp_path)
    card = json.loads(Path(dataset, "card.json").read_text())
    split = card["splits"]["train"]
    assert work.rows == pytest.approx(split["rows"], abs=2)
    assert work.mean == pytest.approx(split["tokens"] / split["rows"], rel=0.05)
    assert work.steps == pytest.approx(2 * split["tokens"] / 256, rel=0.1)
    assert work.vocabulary == card["vocab_size"]
    assert work.outputs == 2


def test_workload_extrapolates_what_it_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = reviews(write_sentences(tmp_path / "sentences.csv", 2000))
    whole = workload.measure(given)
    monkeypatch.setattr(workload, "COUNTED", 20_000)
    part = workload.measure(given)
    assert part.basis.startswith("the first")
    assert part.rows == pytest.approx(whole.rows, rel=0.1)


def test_workload_of_a_tiny_file_is_one_step(tmp_path: Path) -> None:
    assert workload.measure(reviews(write_sentences(tmp_path / "few.csv", 4), epochs=1.0)).steps == 1


def test_pretrained_weights_bring_their_shape(trained: object, tmp_path: Path) -> None:
    hub = workload.shape(recipes.tiny().replace(model={"pretrained": "xlnet/xlnet-large-cased"}).model)
    assert (hub.n_layer, hub.d_model) == (24, 1024)
    own = recipes.tiny().replace(model={"pretrained": str(trained.model)}).model  # type: ignore[attr-defined]
    assert workload.shape(own).d_model == 32
    other = recipes.tiny().replace(model={"pretrained": "someone/xlnet"}).model
    assert workload.shape(other) == other


# Which machine


def test_all_machines_in_one_table(shared_data: Path, isolated_state: Path) -> None:
    """xlnet-large on 25,000 reviews: GPU or TPU?"""
    given = recipes.large().replace(
        data={"train": str(shared_data / "imdb" / "train.csv.gz"), "text": "review", "label": "sentiment"}
    )
    made = planned(given, isolated_state)
    text = made.text()
    assert "20,000 rows to train on" in text
    assert {one.machine.name for one in made.candidates} >= {row.name for row in machines.offered("vertex")}
    assert all(f"\n{row.name} " in text for row in machines.offered("vertex"))
    assert "361," in text
    assert {one.fits for one in made.candidates} == {True, False}
    assert "; the cheapest TPU, " in made.recommendation or "; the cheapest GPU, " in made.recommendation
    assert not isolated_state.exists(), "a plan writes nothing"


def test_auto_takes_the_cheapest_that_fits(recipe: Recipe, tmp_path: Path) -> None:
    heavy = recipe.replace(
        model={"n_layer": 24, "d_model": 1024, "n_head": 16, "d_head": 64}, training={"epochs": 3000.0}
    )
    made = planned(heavy, tmp_path, target="vertex", machine="auto")
    affordable = [one for one in made.candidates if one.fits and not one.machine.spot_only]
    assert made.chosen.usd == min(one.usd or 0.0 for one in affordable)
    hurried = planned(heavy, tmp_path, target="vertex", machine="auto", deadline=0.9 * made.chosen.hours)
    assert hurried.chosen.hours <= 0.9 * made.chosen.hours
    assert (hurried.chosen.usd or 0.0) > (made.chosen.usd or 0.0)
    with pytest.raises(
        UserError, match=r"no machine trains this within 0.\d min; the fastest is '[\w-]+' in .*--deadline"
    ):
        planned(heavy, tmp_path, target="vertex", machine="auto", deadline=0.01)


def test_spot_and_own_prices_change_the_choice(recipe: Recipe, tmp_path: Path) -> None:
    on_demand = planned(recipe, tmp_path, target="kfp", machine="t4").chosen
    spot = planned(recipe, tmp_path, target="kfp", machine="t4", spot=True).chosen
    assert spot.usd == pytest.approx((on_demand.usd or 0.0) * 0.279 / 0.730)
    bargain = planned(recipe, tmp_path, target="kfp", machine="auto", prices={"v6e-8": Price(0.001, None)})
    assert bargain.chosen.machine.name == "v6e-8"
    assert not planned(recipe, tmp_path, target="vertex", machine="auto").chosen.machine.spot_only


def test_several_nodes_share_the_batch_and_cost_more_an_hour(recipe: Recipe, tmp_path: Path) -> None:
    long = recipe.replace(training={"epochs": 3000.0})
    one = planned(long, tmp_path, target="vertex", machine="l4").chosen
    two = planned(long, tmp_path, target="vertex", machine="l4", nodes=2).chosen
    assert two.name == "2 × l4"
    assert two.memory.activations == pytest.approx(one.memory.activations / 2)
    assert two.usd == pytest.approx((one.usd or 0.0) * 2 * two.hours / one.hours)
    assert "2 × l4" in [one.name for one in planned(long, tmp_path, target="kfp", nodes=2).candidates]
    with pytest.raises(UserError, match="TPUs train together within one slice"):
        planned(long, tmp_path, target="kfp", machine="v5e-4", nodes=2)


def test_a_short_training_stays_here(recipe: Recipe, tmp_path: Path) -> None:
    made = planned(recipe, tmp_path)
    assert made.chosen.target == "local"
    assert made.recommendation.startswith("this machine's cpu: takes ")
    assert "GFLOP/s measured here" in made.text()


@pytest.mark.parametrize(
    ("width", "asked", "gains"), [(256, "auto", True), (128, "auto", False), (256, "float32", False)]
)
def test_the_plan_counts_with_bfloat16_where_training_takes_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, asked: str, gains: bool
) -> None:
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    wide = recipe.replace(model={"d_model": width}, training={"precision": asked})
    made = planned(wide, tmp_path, target="local", machine="cpu")
    assert ("bfloat16" in made.chosen.speed_basis) == gains


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    wide = reviews(long_texts(tmp_path, 250, 600), batch_tokens=100_000).replace(
        data={"max_length": 512}, model={"n_layer": 96}
    )
    made = planned(wide, tmp_path, target="vertex", machine="t4")
    assert not made.chosen.fits
    assert f"try --set training.batch_tokens={made.chosen.most_tokens}" in made.text()
    smaller = wide.replace(training={"batch_tokens": made.chosen.most_tokens})
    assert planned(smaller, tmp_path, target="vertex", machine="t4").chosen.fits


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"machine": "a100", "target": "vertex"}, "machine 'a100' is unknown; there are a100-40g"),
        ({"machine": "h200", "target": "vertex"}, "not offered on target 'vertex'; the nearest is 'h200-8'"),
        ({"machine": "v5e-16", "target": "kfp", "nodes": 2}, "within one slice: .* --machine v5e-32"),
        ({"machine": "h100", "target": "vertex"}, "machine 'h100' is sold on spot and flex-start only; add --spot"),
        ({"target": "vertx"}, "target 'vertx' is unknown"),
        ({"nodes": 0}, "--nodes is 0"),
    ],
)
def test_bad_requests_are_refused(recipe: Recipe, tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        planned(recipe, tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("Tesla T4", "t4"),
    ],
)
def test_gpus_here_are_known_by_the_drivers_names(name: str, family: str) -> None:
    assert this_machine._family(name) == family
    assert this_machine._family("NVIDIA GeForce RTX 4090") is None


# What the cache holds


def test_forecast_tells_hits_and_why_not(recipe: Recipe, isolated_state: Path) -> None:
    quick = recipe.replace(training={"steps": 4, "batch_tokens": 512}, evaluation={"resamples": 100})
    first = preview.forecast(quick, isolated_state)
    assert [step.cached for step in first] == [False] * 5
    assert [step.reason for step in first][:2] == ["always runs: it checks the input for changes", "first time"]
    run = LocalTarget(isolated_state).submit(Submission(quick))
    assert run.exit_status == 0

    again = preview.forecast(quick, isolated_state)
    assert [step.cached for step in again] == [False, True, True, True, True]
    assert again[-1].reason == f"same as in run {run.id}"

    changed = preview.forecast(quick.replace(training={"seed": 1}), isolated_state)
    assert [step.cached for step in changed] == [False, True, False, False, False]
    assert changed[2].reason == "recipe changed: training.seed 0 → 1"
    assert changed[3].reason == "train will run"
    told = [(step.name, step.reason) for step in changed[:3]]
    second = LocalTarget(isolated_state).submit(Submission(quick.replace(training={"seed": 1})))
    assert [(step.name, step.reason) for step in second.steps[:3]] == told, "what was told is what happened"

    made = planned(quick, isolated_state, target="local")
    assert made.chosen.speed_basis == f"measured in run {second.id}"
    assert "train      cached  same as in run" in made.text()


def test_command_prints_json_and_answers_with_its_status(
    small_csv: Path, capsys: pytest.CaptureFixture[str], isolated_state: Path
) -> None:
    given = ["plan", "--set", f"data.train={small_csv}", "--set", "data.max_length=32", "--target", "vertex"]
    assert cli.main([*given, "--machine", "v5e-4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chosen"] == "v5e-4"
    assert told["machines"][0]["price"]["date"] == machines.DATE
    assert told["machines"][0]["memory_gib"]["total"] > 0
    assert (
        cli.main([*given, "--machine", "t4", "--set", "training.batch_tokens=9000000", "--set", "training.steps=9"])
        == 0
    )
    assert cli.main([*given, "--machine", "nix"]) == 2
    assert "error: machine 'nix' is unknown" in capsys.readouterr().err
    assert not isolated_state.exists()
