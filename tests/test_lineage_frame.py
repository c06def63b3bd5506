"""The small lineage page that the register step leaves for the backends: safe, small, whole in a narrow frame."""

import html
import shutil
from pathlib import Path
from typing import Any

import pytest
from lineage_samples import many_files, source, write, write_artifacts

from xlnet import provenance
from xlnet.errors import CorruptArtifact, UserError
from xlnet.lineage import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH, HEIGHT = 480, 520  # of the frame in which Kubeflow Pipelines shows an HTML artifact
TURNED = "good\u202egpj.csv"


def text_of(artifact: Path, folder: Path) -> str:
    page.write(artifact, folder / "made" / "lineage")
    return (folder / "made" / "lineage").read_text(encoding="utf-8")


def chain(root: Path, models: int) -> Path:
    """A model that started from another one, and so on, each trained on a dataset of its own."""
    before: list[dict[str, Any]] = []
    for number in range(models):
        dataset = write(root / str(number), "dataset", "preprocess", [], {"train_rows": number})
        before = [write(root / str(number), "model", "train", [dataset, *before], {"base_model": "tiny"})]
    return root / str(models - 1) / "model"


def test_the_page_needs_nothing_and_runs_nothing(tmp_path: Path) -> None:
    files = [*many_files(2), source("train", TURNED), source("train", "x" * 5000)]
    text = text_of(write_artifacts(tmp_path / "a", files), tmp_path)
    assert "<script" not in text
    assert not any(word in text for word in ("src=", "href=", "url(", "@import", "\u202e", "\x1b"))
    assert len(text) < 30_000
    for word in ("reviews:2", "does not beat the champion", "accuracy 0.7525 [0.7200, 0.7800]", "67,349"):
        assert word in text


def test_every_artifact_stands_above_its_inputs(tmp_path: Path) -> None:
    text = text_of(write_artifacts(tmp_path / "a"), tmp_path)
    kinds = ["registration", "evaluation", "model", "dataset", "snapshot", "file"]
    places = [text.index(f'<div class="row {kind}"') for kind in kinds]
    assert places == sorted(places)
    assert text.count("<path") == 5 + 2 + 3, "five straight lines, two past a row, three to further files"


def test_what_has_no_room_is_counted(tmp_path: Path) -> None:
    text = text_of(chain(tmp_path, 40), tmp_path)
    assert "57 more inputs in lineage.json" in text


@pytest.mark.parametrize("spoil", ["{", "[]", None])
def test_a_damaged_record_is_an_error(tmp_path: Path, spoil: str | None) -> None:
    artifact = write_artifacts(tmp_path / "a")
    (artifact / provenance.LINEAGE).unlink()
    if spoil is not None:
        (artifact / provenance.LINEAGE).write_text(spoil)
    with pytest.raises(UserError if spoil is None else CorruptArtifact, match="lineage"):
        page.write(artifact, tmp_path / "made")


def test_the_page_is_whole_in_a_sandboxed_frame(tmp_path: Path) -> None:
    if not CHROMIUM:
        pytest.skip("no chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    texts = [text_of(write_artifacts(tmp_path / f"a{count}", many_files(count)), tmp_path) for count in (1, 6, 300)]
    texts += [text_of(chain(tmp_path / f"b{count}", count), tmp_path) for count in (1, 5, 40)]
    frames = "".join(
        f'<iframe sandbox width="{WIDTH}" height="{HEIGHT}" srcdoc="{html.escape(one)}"></iframe>' for one in texts
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_content(frames)
        found = [
            frame.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.scrollHeight,"
                " Math.max(...[...document.querySelectorAll('.row')].map(row => row.getBoundingClientRect().bottom)),"
                " Math.max(...[...document.querySelectorAll('.row')].map(row => row.scrollHeight - row.clientHeight))]"
            )
            for frame in opened.frames[1:]
        ]
        browser.close()
    assert len(found) == len(texts)
    for width, height, lowest, cut in found:
        assert (width, height) == (WIDTH, HEIGHT), "nothing scrolls"
        assert lowest <= HEIGHT
        assert cut == 0, "no line is cut through"
