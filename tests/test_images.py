"""Tags and digests over real connections to a registry that wants to know who asks."""

import base64
import hashlib
import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PINNED_IMAGE
from servers.kfp_server import KfpServer
from servers.registry import INDEX, Registry
from test_kfp_target import recipe_file

from xlnet.errors import UserError
from xlnet_pipeline.cli import main
from xlnet_pipeline.images import login as registry_login
from xlnet_pipeline.images import references


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for Docker's settings."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN", raising=False)
    return folder


@pytest.fixture
def registry(docker: Path) -> Iterator[Registry]:
    references.pinned.cache_clear()
    with Registry() as started:
        yield started


def test_a_tag_becomes_its_digest_and_is_asked_for_once(registry: Registry) -> None:
    digest = registry.push("team/xlnet", "v1")
    name = f"{registry.host}/team/xlnet"
    assert references.pinned(f"{name}:v1") == f"{name}@{digest}"
    assert references.pinned(f"{name}:v1") == f"{name}@{digest}"
    assert registry.count("HEAD", "/manifests/v1") == 1
    assert references.exists(f"{name}@{digest}") is True
    latest = registry.push("team/xlnet", "latest")
    assert references.pinned(name) == f"{name}@{latest}"
    assert references.pinned(f"{name}:v1@{digest}") == f"{name}:v1@{digest}", "pinned already"


def test_an_index_of_several_platforms_is_pinned_as_a_whole(registry: Registry) -> None:
    digest = registry.push("xlnet", "v2", INDEX)
    assert references.pinned(f"{registry.host}/xlnet:v2") == f"{registry.host}/xlnet@{digest}"


def test_a_digest_that_is_not_told_is_computed(registry: Registry) -> None:
    digest = registry.push("xlnet", "v1")
    registry.tells_digest = False
    assert references.pinned(f"{registry.host}/xlnet:v1") == f"{registry.host}/xlnet@{digest}"


def test_an_unknown_tag_names_the_nearest(registry: Registry) -> None:
    registry.push("xlnet", "release-1")
    with pytest.raises(UserError, match="has no 'xlnet:relase-1'; did you mean 'release-1'.*push it"):
        references.pinned(f"{registry.host}/xlnet:relase-1")
    with pytest.raises(UserError, match="has no 'nothing:latest'"):
        references.pinned(f"{registry.host}/nothing")


def test_who_is_not_logged_in_is_told_how(registry: Registry) -> None:
    registry.push("secret", "v1")
    registry.private.add("secret")
    with pytest.raises(UserError, match=rf"\(401\); type: docker login {registry.host}"):
        references.pinned(f"{registry.host}/secret:v1")
    assert references.exists(f"{registry.host}/secret@sha256:{'0' * 64}") is None


@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
def test_a_login_of_docker_opens_a_private_repository(registry: Registry, docker: Path, challenge: str) -> None:
    digest = registry.push("secret", "v1")
    registry.private.add("secret")
    registry.challenge = challenge
    entry = {"auth": base64.b64encode(b"reader:pass:word").decode()}
    (docker / "config.json").write_text(json.dumps({"auths": {registry.host: entry}}))
    assert references.pinned(f"{registry.host}/secret:v1") == f"{registry.host}/secret@{digest}"


def test_a_refresh_token_opens_a_private_repository(registry: Registry, docker: Path) -> None:
    digest = registry.push("secret", "v1")
    registry.private.add("secret")
    (docker / "config.json").write_text(json.dumps({"auths": {registry.host: {"identitytoken": "refresh-me"}}}))
    assert references.pinned(f"{registry.host}/secret:v1") == f"{registry.host}/secret@{digest}"


def helper(folder: Path, script: str) -> None:
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("settings", ["credHelpers", "credsStore"])
def test_a_credential_helper_is_asked(
    registry: Registry, docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    digest = registry.push("secret", "v1")
    registry.private.add("secret")
    content: Any = {registry.host: "test"} if settings == "credHelpers" else "test"
    (docker / "config.json").write_text(json.dumps({settings: content}))
    with pytest.raises(UserError, match="'docker-credential-test', which Docker's config.json names, is not on PATH"):
        references.pinned(f"{registry.host}/secret:v1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    answer = json.dumps({"ServerURL": registry.host, "Username": "reader", "Secret": "pass:word"})
    helper(tmp_path, f'[ "$1" = get ] && [ "$(cat)" = {registry.host} ] && echo \'{answer}\'')
    assert references.pinned(f"{registry.host}/secret:v1") == f"{registry.host}/secret@{digest}"


def test_google_registries_take_googles_credentials(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "ya29.x")
    for host in ("europe-docker.pkg.dev", "gcr.io", "eu.gcr.io"):
        assert registry_login.credentials(host) == ("oauth2accesstoken", "ya29.x")
        assert f"gcloud auth configure-docker {host}" in registry_login.remedy(host)
    for host in ("gcr.io.example", "pkg.dev.example", "quay.io", "docker.io"):
        assert registry_login.credentials(host) is None, f"a token of Google's for {host}"


def test_credentials_go_to_no_token_server_without_encryption(docker: Path) -> None:
    (docker / "config.json").write_text(json.dumps({"auths": {"registry.example": {"auth": "YTpi"}}}))
    assert registry_login.authorization("registry.example", 'Bearer realm="http://127.0.0.1:9/token"', 1.0) == ""


@pytest.mark.parametrize("fault", ["hang", "cut", "drop", 503])
def test_a_registry_that_does_not_answer_is_one_line(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, fault: int | str
) -> None:
    registry.push("xlnet", "v1")
    registry.tells_digest = False  # so that the answer has a body to be cut
    monkeypatch.setattr(references, "RESOLVE", 0.3)
    registry.fault("HEAD" if fault != "cut" else "GET", "/manifests/", fault, times=9)
    started = time.monotonic()
    with pytest.raises(UserError, match="is not pinned.*give it as .*@sha256:") as raised:
        references.pinned(f"{registry.host}/xlnet:v1")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("image", ["xlnet:v1", "team/xlnet", "xlnet"])
def test_a_name_without_a_registry_is_refused(image: str) -> None:
    with pytest.raises(UserError, match=f"image '{image}' is not pinned, and names no registry.*REGISTRY/"):
        references.pinned(image)


def test_dockers_own_registry_has_its_own_places() -> None:
    reference = references.parse("docker.io/python:3.11")
    assert reference is not None
    assert reference.manifests == "https://registry-1.docker.io/v2/library/python/manifests"
    assert references.parse("docker.io/team/xlnet") == references.Reference("docker.io", "team/xlnet")


def test_a_run_is_submitted_with_the_digest_and_its_schedule_sees_that_the_tag_moved(
    registry: Registry,
    kfp: KfpServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kfp.run_pipelines = False
    recipe = str(recipe_file(tmp_path / "recipe.toml"))
    digest = registry.push("team/xlnet", "v1")
    image = f"{registry.host}/team/xlnet:v1"
    where = ["--target", "kfp"]
    assert main(["run", recipe, *where, "--image", image]) == 0
    (body,) = kfp.runs.values()
    text = json.dumps(body["pipeline_spec"])
    assert text.count(f"{registry.host}/team/xlnet@{digest}") >= 5
    assert image not in text
    monkeypatch.setenv("XLNET_IMAGE", image)
    assert main(["schedule", "create", "nightly", recipe, *where, "--cron", "0 3 * * *"]) == 0
    capsys.readouterr()
    assert main(["schedule", "list", *where, "--recipe", recipe]) == 0
    assert "none" in capsys.readouterr().out, "no drift"
    references.pinned.cache_clear()
    registry.manifests["team/xlnet"]["v1"] = (registry.manifests["team/xlnet"]["v1"][0], b'{"another": "image"}')
    moved = hashlib.sha256(b'{"another": "image"}').hexdigest()
    assert main(["schedule", "show", "nightly", *where, "--recipe", recipe]) == 0
    assert moved[:8] in capsys.readouterr().out.partition("drift:")[2]


def test_compile_writes_the_digest(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = registry.push("xlnet", "v1")
    file = tmp_path / "pipeline.yaml"
    assert main(["compile", "-o", str(file), "--image", f"{registry.host}/xlnet:v1"]) == 0
    assert f"{registry.host}/xlnet@{digest}" in file.read_text()
    assert main(["compile", "-o", str(file), "--image", f"{registry.host}/xlnet:v2"]) == 2
    assert "has no 'xlnet:v2'; did you mean 'v1'" in capsys.readouterr().err
    assert main(["compile", "-o", str(file), "--image", PINNED_IMAGE]) == 0, "what is pinned is not looked up"
