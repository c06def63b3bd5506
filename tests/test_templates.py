"""Values that a workflow engine would replace or run are refused before anything is sent to it."""

import pytest

from xlnet import recipe as recipes
from xlnet.errors import UserError
from xlnet_pipeline import cli
from xlnet_pipeline.targets.remote import refuse_templates

TEMPLATES = ("{{workflow.name}}", "a {{=sprig.env('HOME')}} b", "{{$.inputs.parameters['recipe']}}", "{{")


@pytest.mark.parametrize("value", TEMPLATES)
@pytest.mark.parametrize("field", ["data.text", "data.label", "data.train"])
@pytest.mark.parametrize("target", ["kfp", "vertex"])
def test_a_template_in_a_recipe_is_refused(field: str, value: str, target: str) -> None:
    name = field.removeprefix("data.")
    given = {"train": "gs://bucket/train.csv", name: f"gs://bucket/{value}" if name == "train" else value}
    recipe = recipes.tiny().replace(data=given)
    with pytest.raises(UserError, match=rf"{field} is .*'{target}' no value may hold '{{{{'"):
        refuse_templates(recipe, target)


def test_a_class_of_such_a_name_is_refused() -> None:
    recipe = recipes.tiny().replace(data={"train": "gs://b/o.csv"}, training={"class_weights": {"{{pod.name}}": 2.0}})
    with pytest.raises(UserError, match=r"training.class_weights is .*no value may hold"):
        refuse_templates(recipe, "kfp")


@pytest.mark.parametrize("command", ["check", "run"])
def test_check_and_run_refuse_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("KFP_PIPELINE_ROOT", "gs://bucket/root")
    words = [
        command,
        "--target",
        "kfp",
        "--set",
        "data.train=demo:uci_sentences",
        "--set",
        "data.text={{workflow.uid}}",
    ]
    words += ["--set", "data.label=1", "--image", "registry.test/xlnet@sha256:" + "0" * 64]
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert "data.text is '{{workflow.uid}}'" in told.out + told.err


def test_braces_that_are_no_template_pass() -> None:
    refuse_templates(recipes.tiny().replace(data={"text": "{text}", "label": "}}{"}), "kfp")
