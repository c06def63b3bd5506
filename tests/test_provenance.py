"""Digests, lineage records, and artifacts that are whole or absent."""

import ast
import gc
import shutil
from pathlib import Path

import pytest

import xlnet
from xlnet import provenance
from xlnet.errors import CorruptArtifact, UserError
from xlnet.steps import STEPS


def artifact(path, text="content"):
    with provenance.writing(path) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "a.txt").write_text(text)
        (directory / "logs").mkdir()
        (directory / "logs" / "events.out.tfevents.1").write_text(provenance.now())
        provenance.record(
            directory,
            type="dataset",
            step="preprocess",
            started=provenance.now(),
            parameters={"x": 1},
            metadata={"rows": 3},
            inputs=[],
        )
    return path


def test_equal_content_has_equal_digests_whatever_the_times(tmp_path):
    first, second = artifact(tmp_path / "a"), artifact(tmp_path / "b")
    assert provenance.verify(first) == provenance.verify(second)
    assert provenance.verify(artifact(tmp_path / "c", "other")) != provenance.verify(first)


def test_a_renamed_file_changes_the_digest(tmp_path):
    path = artifact(tmp_path / "a")
    (path / "sub" / "a.txt").rename(path / "sub" / "b.txt")
    with pytest.raises(CorruptArtifact, match="was changed after it was written"):
        provenance.verify(path)


def test_lineage_names_the_execution(tmp_path):
    lineage = provenance.read(artifact(tmp_path / "a"))
    assert lineage["artifact"]["metadata"] == {"rows": 3}
    assert lineage["execution"]["code"]["version"] == xlnet.__version__
    assert lineage["execution"]["started"] <= lineage["execution"]["ended"]
    assert lineage["execution"]["machine"]["packages"]["torch"]


def test_a_failed_write_leaves_the_old_artifact_and_no_rest(tmp_path):
    path = artifact(tmp_path / "a")
    before = provenance.verify(path)

    def failing():
        with provenance.writing(path) as directory:
            (directory / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        failing()
    assert provenance.verify(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_damage_is_told_from_absence(tmp_path):
    with pytest.raises(UserError, match=r"has no lineage\.json; name an artifact directory"):
        provenance.read(tmp_path)
    path = artifact(tmp_path / "a")
    for wrong in ("{", "[]", '{"artifact": 1}'):
        (path / "lineage.json").write_text(wrong)
        with pytest.raises(CorruptArtifact, match="run the step again"):
            provenance.read(path)


@pytest.fixture
def copied_source(tmp_path, monkeypatch):
    """A copy of the package's source that a test may change."""
    copy = tmp_path / "xlnet"
    shutil.copytree(Path(xlnet.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.model", "*.txt"))
    monkeypatch.setattr(xlnet, "__file__", str(copy / "__init__.py"))
    return copy


def test_a_changed_line_changes_just_the_steps_that_reach_it(copied_source):
    before = {step: provenance.code_fingerprint(step) for step in STEPS}
    with (copied_source / "training" / "optim.py").open("a") as file:
        file.write("# a comment\n")
    after = {step: provenance.code_fingerprint(step) for step in STEPS}
    assert {step for step in before if before[step] != after[step]} == {"pretrain", "train"}


def test_a_changed_recipe_module_changes_every_step(copied_source):
    before = {step: provenance.code_fingerprint(step) for step in STEPS}
    with (copied_source / "errors.py").open("a") as file:
        file.write("# a comment\n")
    assert all(provenance.code_fingerprint(step) != before[step] for step in before)


def test_a_steps_code_holds_the_kernels_it_compiles():
    trained = provenance.code_parts("train")
    kernels = {name for name in trained if name.startswith("xlnet.model.kernels/")}
    sources = {"amx.cpp", "attention.cpp", "decode.cpp", "elementwise.cpp", "int8.cpp", "streams.cpp"}
    sources |= {"few_rows.h", "products.h", "relative.h", "vectors.h"}
    assert {f"xlnet.model.kernels/{name}" for name in sources | {"tiles.json"}} == kernels
    assert not any("kernels/" in name for name in provenance.code_parts("preprocess"))


def test_a_garbage_collection_that_parses_does_not_fail_a_fingerprint():
    def parse(*_: object) -> None:
        compile("a = 1", "parsed", "exec", ast.PyCF_ONLY_AST)

    usual = provenance.code_parts("snapshot")
    threshold = gc.get_threshold()
    gc.set_threshold(50)
    gc.callbacks.append(parse)
    try:
        assert provenance.code_parts("snapshot") == usual
    finally:
        gc.callbacks.remove(parse)
        gc.set_threshold(*threshold)
