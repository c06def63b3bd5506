"""The recipe: strict in, canonical out, and errors that say what to type."""

import dataclasses

import pytest
from transformers import XLNetConfig

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet.steps import KEPT


@pytest.mark.parametrize("preset", recipes.PRESETS)
def test_json_goes_both_ways(preset):
    recipe = recipes.PRESETS[preset]()
    assert recipe.model.preset == preset
    assert recipes.from_json(recipe.to_json()) == recipe
    assert recipes.from_json(recipe.to_json()).digest() == recipe.digest()


def test_base_and_large_are_the_published_shapes():
    published = XLNetConfig()  # transformers' default is xlnet-large-cased
    names = ("n_layer", "d_model", "n_head", "d_head", "d_inner")
    assert [getattr(recipes.large().model, name) for name in names] == [getattr(published, name) for name in names]
    assert [getattr(recipes.base().model, name) for name in names] == [12, 768, 12, 64, 3072]


def test_a_file_starts_from_its_preset_and_settings_go_over_it(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('[model]\npreset = "small"\n[data]\ntrain = "rows/*.csv"\n[training]\nsteps = 7\n')
    recipe = recipes.load(file, ["training.steps=500", "registry.name=2026", "data.text=3", "training.epochs=2"])
    assert recipe.model == recipes.small().model
    assert recipe.training.steps == 500
    assert recipe.training.epochs == 2.0
    assert recipe.registry.name == "2026"
    assert recipe.data.text == 3
    assert recipe.data.train == (str(tmp_path / "rows/*.csv"),), "relative to the file"


def test_settings_are_relative_to_the_working_directory_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipes.load(
        None, ["data.train=a.csv", "data.test=gs://bucket/b.csv", "data.validation=demo:uci_sentences"]
    )
    assert recipe.data.train == (str(tmp_path / "a.csv"),)
    assert recipe.data.test == ("gs://bucket/b.csv",)
    assert recipe.data.validation == ("demo:uci_sentences",)


def test_a_home_directory_may_be_short_and_a_file_may_begin_with_a_mark(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "vocabulary").mkdir(parents=True)
    text = '\ufeff[data]\r\ntrain = ["~/a.csv", "b~.csv"]\r\ntokenizer = "~/vocabulary"\r\n'
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    recipe = recipes.load(tmp_path / "recipe.toml", ["data.test=~/t/*.csv", "model.pretrained=~/vocabulary"])
    assert recipe.data.train == (str(tmp_path / "home/a.csv"), str(tmp_path / "b~.csv"))
    assert recipe.data.test == (str(tmp_path / "home/t/*.csv"),)
    assert recipe.data.tokenizer == recipe.model.pretrained == str(tmp_path / "home/vocabulary")
    assert recipes.load(None, ["data.train=~nobody-here/a.csv"]).data.train[0].endswith("/~nobody-here/a.csv")
    (tmp_path / "wide.toml").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="is not TOML: 'utf-8' codec can't decode"):
        recipes.load(tmp_path / "wide.toml")


WRONG = {
    "trainin.steps=5": "unknown section 'trainin'; allowed: data, model, training, .*did you mean 'training",
    "training.stepz=5": "unknown field 'training.stepz'; did you mean 'training.steps'",
    "data.batch_tokens=5": "unknown field 'data.batch_tokens'; did you mean 'training.batch_tokens'",
    "training.qqqq=5": "unknown field 'training.qqqq'; allowed: epochs, steps",
    "training.steps=many": "training.steps is 'many'; allowed: a whole number",
    "training.steps=1.5": r"training.steps is 1\.5; allowed: a whole number",
    "training.steps=true": "training.steps is True; allowed: a whole number",
    "training.learning_rate=-1": r"training.learning_rate is -1\.0; allowed: 0\.0 to 10",
    "training.learning_rate=nan": "training.learning_rate is nan; allowed",
    "model.preset=smal": "model.preset is 'smal'; allowed: tiny, small, base, large; did you mean 'small'",
    "data.format=cvs": "data.format is 'cvs'; allowed: .*did you mean 'csv'",
    "data.label=-1": "data.label is -1; allowed: a column's name, or its index from 0",
    "data.train=[1]": r"data.train is \[1\]; allowed: a path or a list of paths",
    "registry.name=a/b": "registry.name is 'a/b'; allowed: a name without spaces",
    "model.d_model=15": "model.d_model is 15; allowed: an even number",
    "training.epochs=0": "training.epochs and training.steps are both 0",
    "data.test_fraction=0.85": "data.validation_fraction . data.test_fraction is 0.95; allowed: 0.9 at most",
    "steps=5": "'steps=5' is not section.field=value",
    "training.steps": "'training.steps' is not section.field=value",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_setting_says_what_is_allowed(setting):
    with pytest.raises(UserError, match=WRONG[setting]) as caught:
        recipes.load(None, [setting])
    assert "\n" not in str(caught.value)


def test_a_shape_beside_pretrained_weights_is_refused():
    with pytest.raises(UserError, match=r"model.n_layer is set beside model.pretrained"):
        recipes.load(None, ["model.pretrained=xlnet-base-cased", "model.n_layer=3"])


def test_wrong_files_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="does not exist; write one with: xlnet-pipeline init"):
        recipes.load(tmp_path / "none.toml")
    with pytest.raises(UserError, match="is a directory"):
        recipes.load(tmp_path)
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(UserError, match="is not TOML"):
        recipes.load(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        recipes.load(tmp_path / "bytes.toml")
    (tmp_path / "flat.toml").write_text("data = 3\n")
    with pytest.raises(UserError, match="data is 3; it must be a section"):
        recipes.load(tmp_path / "flat.toml")


@pytest.mark.parametrize("text", ["", "[]", "3", '{"data": 1}', '{"dta": {}}', '{"data": {"txt": 1}}'])
def test_wrong_json_is_refused(text):
    with pytest.raises(UserError):
        recipes.from_json(text)


def test_a_recipe_is_a_value():
    recipe = recipes.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.model.n_layer = 3
    assert recipe.replace(training={"seed": 1}).training.seed == 1
    assert recipe.training.seed == 0


def test_a_steps_part_holds_only_what_it_depends_on():
    recipe = recipes.tiny()
    changed = recipe.replace(evaluation={"margin": 0.5})
    assert changed.part(*KEPT["train"].sections) == recipe.part(*KEPT["train"].sections)
    assert changed.part(*KEPT["register"].sections) != recipe.part(*KEPT["register"].sections)
