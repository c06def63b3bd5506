"""The tutorial's commands, typed one after another in an empty directory, as a new user would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = (CHECKOUT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Section of the tutorial → what its commands print."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("XLNET_PIPELINE_HOME", None)
    told = {}
    for section in PAGE.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for commands in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
            done = subprocess.run(
                ["bash", "-e", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
            told[title] = done.stdout
    return told


def test_training_ends_with_a_score_and_what_to_type_next(shown: dict[str, str]) -> None:
    assert re.search(r"accuracy\s+0\.\d+", shown["Train"])
    assert "xlnet-pipeline predict uci-sentences" in shown["Train"]


def test_each_text_gets_a_line(shown: dict[str, str]) -> None:
    assert shown["Predict"].count('"probabilities"') == 3


def test_the_tree_ends_at_the_input_files(shown: dict[str, str]) -> None:
    assert shown["See where the model came from"].count("_labelled.txt") >= 3


def test_an_unchanged_run_makes_nothing_and_a_changed_field_what_depends_on_it(shown: dict[str, str]) -> None:
    again, changed = shown["Run it again"], shown["Change one field"]
    assert not re.search(r"^train .*step \d+/\d+", again, re.MULTILINE)
    assert kept(again) == {"preprocess", "train", "evaluate", "register"}
    assert kept(changed) == {"preprocess", "train"}


def kept(said: str) -> set[str]:
    return {step for step in ("preprocess", "train", "evaluate", "register") if re.search(rf"{step}\b.*cached", said)}


def test_runs_and_models_are_listed(shown: dict[str, str]) -> None:
    assert shown["Look at the runs and models"].count("SUCCEEDED") == 3
