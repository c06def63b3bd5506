"""What the command line says of a wrong address, root, namespace or image: one line, status 2, and what to type."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import PINNED_IMAGE
from servers.kfp_server import PREFIX, KfpServer
from servers.registry import Registry
from servers.web import Refused, Request
from test_kfp_target import recipe_file

from xlnet import http
from xlnet_pipeline.cli import main

COMMANDS = [["runs", "list"], ["runs", "show", "4f2a"], ["schedule", "list"], ["run", "recipe.toml", "--no-check"]]


ENDINGS = ["", "/", "/#/runs", "/#/experiments", "/apis/v2beta1", "/apis/v2beta1/runs", "/apis"]
ROOTS = ["gcs://bucket/root", "bucket/root", "/mnt/root", "https://bucket/root", "oci://b/r", "gs:/b"]
ROOTS += ["gs://", "s3:///root", "minio://"]  # without a bucket


@pytest.fixture
def here(kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KfpServer:
    """A server that runs nothing, and a recipe in the working directory."""
    kfp.run_pipelines = False
    recipe_file(tmp_path / "recipe.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(http, "PATIENCE", 0.1)
    return kfp


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main([*words, "--target", "kfp"]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    return said.err


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_address_as_it_is_copied_from_a_browser_works(
    ending: str, here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", here.url + ending)
    assert main(["run", "recipe.toml", "--no-check", "--target", "kfp"]) == 0
    assert f"page {here.url}/#/runs/details/" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["127.0.0.1:8888", "http://", "http://:8888", "http://localhost:port", "ftp://h"])
@pytest.mark.parametrize("words", COMMANDS)
def test_an_address_that_is_no_url_says_what_to_type(
    words: list[str], address: str, here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", address)
    assert "is not a URL; type http://HOST:PORT or https://HOST" in refused(words, capsys)


@pytest.mark.parametrize(
    ("status", "content", "what"),
    [
        (200, "<!DOCTYPE html><html>log in</html>", "a web page"),
        (302, "Found", "a redirect (to a login"),
        (200, "pong", "content of type 'text/plain"),
        (200, b"pong", "content of type 'application/octet-stream'"),
        (200, {"status": "ok"}, "JSON of something else"),
        (200, [1, 2], "JSON of something else"),
    ],
)
@pytest.mark.parametrize("words", [COMMANDS[0], COMMANDS[-1]])
def test_another_server_is_not_taken_for_the_api(
    words: list[str],
    status: int,
    content: Any,
    what: str,
    here: KfpServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(here, "answer", lambda request: (status, content, {}))
    said = refused(words, capsys)
    assert f"answers with {what}" in said
    assert "set KFP_ENDPOINT to" in said


def test_tls_where_the_server_speaks_none_is_one_line(
    here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", here.url.replace("http://", "https://"))
    assert main(["runs", "list", "--target", "kfp"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(
        f"error: Kubeflow Pipelines at https://{here.url.removeprefix('http://')} does not answer"
    )


@pytest.mark.parametrize("words", COMMANDS)
def test_a_path_that_is_not_the_apis_is_one_line(
    words: list[str], here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", f"{here.url}/somewhere")
    assert "check KFP_ENDPOINT" in refused(words, capsys)


def test_an_installation_below_a_path_is_reached(
    here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = here.answer

    def below(request: Request) -> Any:
        if not request.path.startswith("/pipeline/"):
            return 200, "<!DOCTYPE html><html>dashboard</html>", {}
        request.path = request.path.removeprefix("/pipeline")
        return answer(request)

    monkeypatch.setattr(here, "answer", below)
    monkeypatch.setenv("KFP_ENDPOINT", f"{here.url}/pipeline/")
    assert main(["run", "recipe.toml", "--no-check", "--target", "kfp"]) == 0
    said = capsys.readouterr().out
    assert f"page {here.url}/pipeline/#/runs/details/" in said
    run = said.split("run ", 1)[1].split()[0]
    assert main(["runs", "show", run, "--target", "kfp"]) == 0
    monkeypatch.setenv("KFP_ENDPOINT", here.url)
    assert "answers with a web page" in refused(["runs", "list"], capsys)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_token_is_brought_along(
    words: list[str], here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.token = "good"
    assert "set KFP_TOKEN to a fresh token" in refused(words, capsys)
    monkeypatch.setenv("KFP_TOKEN", "old")
    assert "set KFP_TOKEN to a fresh token" in refused(words, capsys)
    monkeypatch.setenv("KFP_TOKEN", "good")
    assert main(["runs", "list", "--target", "kfp"]) == 0


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("words", COMMANDS)
def test_a_root_of_another_scheme_is_one_line(
    root: str, words: list[str], here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_PIPELINE_ROOT", root)
    assert f"pipeline_root '{root}' is not gs://BUCKET/FOLDER or s3://" in refused(words, capsys)


EVERYTHING = re.compile(PREFIX + "/.*")
# What an installation for several users says: without a namespace, with another's, and of another's experiment.
REFUSALS = {
    400: "Invalid input error: Invalid ListExperiments request. Namespace cannot be empty in multi-user mode",
    403: "User 'ann@example.com' is not authorized with reason: (request: {Namespace:team-b,Verb:list})",
}


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("namespace", ["", "team-b"])
@pytest.mark.parametrize("words", COMMANDS)
def test_another_namespace_is_one_line_that_names_the_setting(
    status: int,
    namespace: str,
    words: list[str],
    here: KfpServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(request: Request) -> Any:
        raise Refused(status, REFUSALS[status])

    monkeypatch.setenv("KFP_NAMESPACE", namespace)
    here.routes[:0] = [(method, EVERYTHING, refuse) for method in ("GET", "POST")]
    said = refused(words, capsys)
    assert "KFP_NAMESPACE" in said
    assert (f"'{namespace}'" if namespace else "is not set") in said


def test_an_image_without_such_a_digest_is_one_line(
    here: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Registry() as registry:
        digest = registry.push("team/xlnet", "cpu")
        other = f"{registry.host}/team/xlnet@{PINNED_IMAGE.partition('@')[2]}"
        for image in (other, f"{registry.host}/team/other@{digest}"):
            monkeypatch.setenv("XLNET_IMAGE", image)
            said = refused(["run", "recipe.toml"], capsys)
            assert f"image '{image}' is not in its registry" in said
            assert "push it, or name another with --image" in said
        assert here.runs == {}
        monkeypatch.setenv("XLNET_IMAGE", f"{registry.host}/team/xlnet:cpu")
        main(["run", "recipe.toml", "--no-check", "--target", "kfp"])
        (run,) = here.runs.values()
        assert digest in str(run["pipeline_spec"])
