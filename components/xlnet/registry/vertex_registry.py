"""The registry interface for Vertex AI Model Registry: versions of one parent model, aliases, labels, evaluations.

Vertex AI's labels are short and allow few characters. So the version's description holds digests and addresses, one
per line, after the reason for the decision.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from xlnet.errors import UserError, nearest
from xlnet.http import HttpError
from xlnet.redaction import redacted
from xlnet.registry.address import check_name
from xlnet.registry.versions import CHAMPION, ModelVersion, choose
from xlnet.registry.vertex_api import VertexApi

SCHEMA = "gs://google-cloud-aiplatform/schema/modelevaluation/{}_metrics_1.0.0.yaml"
TASKS = {"accuracy": "classification", "bits_per_byte": "general_text_generation"}  # a metric → the only task with it
LABELS = ("decision", "git_sha", "run")
ROUTES = {"healthRoute": "/healthz", "predictRoute": "/predict"}  # routes of xlnet.serving
DEFAULT = "default"  # alias of the version that Vertex AI serves by default
OURS = {"created-by": "xlnet-pipeline"}


def schema(metrics: Mapping[str, float]) -> str:
    """Return the schema that Vertex AI needs to read an evaluation with these metrics."""
    return SCHEMA.format(next((task for metric, task in TASKS.items() if metric in metrics), "regression"))


class VertexRegistry:
    """The registry at ``vertex://PROJECT/LOCATION``; ``VERTEX_ENDPOINT`` replaces the server.

    See :class:`xlnet.registry.Registry` for the methods.
    """

    def __init__(self, uri: str) -> None:
        place = urlsplit(uri)
        project, location = place.netloc, place.path.strip("/")
        if not project or not location:
            raise UserError(f"registry '{redacted(uri)}' is not vertex://PROJECT/LOCATION")
        self.shown_uri = uri
        self.api = VertexApi(project, location, os.environ.get("VERTEX_ENDPOINT", ""))

    def ready(self, name: str) -> None:
        """Raise UserError or RunError if Vertex AI does not accept the name, or does not answer."""
        self.champion(name)

    def names(self) -> list[str]:
        query: dict[str, str | int] = {"filter": 'labels.created-by="xlnet-pipeline"', "pageSize": 100}
        found = self.api.pages(f"{self.api.parent}/models", "models", query)
        return sorted(model["name"].rpartition("/")[2].partition("@")[0] for model in found)

    def versions(self, name: str) -> list[ModelVersion]:
        path = f"{self._path(name)}:listVersions"
        try:
            found = [_version(name, one) for one in self.api.pages(path, "models", {"pageSize": 100})]
        except UserError:
            known = self.names()
            hint = nearest(name, known) or (f"; there are {', '.join(known)}" if known else "; there are none yet")
            raise UserError(f"model '{name}' is unknown in '{self.shown_uri}'{hint}") from None
        return sorted(found, key=lambda one: one.version, reverse=True)

    def find(self, reference: str) -> ModelVersion:
        return choose(reference, self.versions)

    def champion(self, name: str) -> ModelVersion | None:
        found = self.api.get(f"{self._path(name)}@{CHAMPION}")
        return _version(name, found) if found else None

    def add(
        self, name: str, description: str, tags: dict[str, str], parameters: dict[str, str], metrics: dict[str, float]
    ) -> ModelVersion:
        """Register a new version with its evaluation."""
        model: dict[str, Any] = {
            "displayName": name,
            "versionDescription": _described(description, tags),
            "labels": _labels(tags),
            "artifactUri": tags.get("model_uri", ""),
            "containerSpec": _serving(os.environ.get("XLNET_IMAGE", "")),
        }
        exists = self.api.get(self._path(name)) is not None
        place = {"parentModel": self._path(name)} if exists else {"modelId": name}
        digest = tags.get("model_digest", "")
        operation = self.api.call(
            "POST",
            f"{self.api.parent}/models:upload",
            {**place, "model": model},
            recover=lambda: self._uploaded(name, digest),
        )
        response = self.api.finished(operation)
        number = int(response["modelVersionId"])
        evaluation = {"displayName": f"{name}:{number}", "metricsSchemaUri": schema(metrics), "metrics": metrics}
        path = f"{self._path(name)}@{number}/evaluations:import"
        self.api.call("POST", path, {"modelEvaluation": evaluation})
        return self.find(f"{name}:{number}")

    def _uploaded(self, name: str, digest: str) -> dict[str, Any] | None:
        """Find the version that an upload without an answer has created, as a finished operation."""
        with contextlib.suppress(UserError):
            for one in self.versions(name):
                if digest and one.tags.get("model_digest") == digest:
                    return {"done": True, "response": {"modelVersionId": str(one.version)}}
        return None

    def describe(self, name: str, version: int, description: str, tags: dict[str, str]) -> None:
        merged = {**self.find(f"{name}:{version}").tags, **tags}
        body = {"versionDescription": _described(description, merged), "labels": _labels(merged)}
        self.api.call("PATCH", f"{self._path(name)}@{version}", body, query={"updateMask": "versionDescription,labels"})

    def set_alias(self, name: str, alias: str, version: int) -> None:
        try:
            self.api.call("POST", f"{self._path(name)}@{version}:mergeVersionAliases", {"versionAliases": [alias]})
        except HttpError as error:
            raise UserError(f"'{name}:{version}' is unknown in '{self.shown_uri}': {error.message}") from None

    def delete(self, name: str, version: int) -> None:
        """Remove a version, or the model with its last one. A default version first passes this alias to another."""
        others = [one for one in self.versions(name) if one.version != version]
        if not others:
            self.api.finished(self.api.call("DELETE", self._path(name)))
            return
        if DEFAULT in self.api.call("GET", f"{self._path(name)}@{version}").get("versionAliases", []):
            heir = next((one for one in others if CHAMPION in one.aliases), others[0])
            self.set_alias(name, DEFAULT, heir.version)
        self.api.finished(self.api.call("DELETE", f"{self._path(name)}@{version}:deleteVersion"))

    def exclusive(self) -> AbstractContextManager[None]:
        """Do nothing, because Vertex AI has no lock. Of two simultaneous registrations, the later decision wins."""
        return contextlib.nullcontext()

    def _path(self, name: str) -> str:
        check_name(self.shown_uri, name)
        return f"{self.api.parent}/models/{name}"


def _serving(image: str) -> dict[str, Any]:
    """Describe how Vertex AI serves the model: with the registering image, which also contains the server."""
    arguments = ["python", "-m", "xlnet", "serve", "--host", "0.0.0.0"]
    return {"imageUri": image, "args": arguments, "ports": [{"containerPort": 8080}], **ROUTES}


def _labels(tags: dict[str, str]) -> dict[str, str]:
    """Make labels for searching models; values are shortened to what a label allows."""
    short = {
        key.replace("_", "-"): re.sub(r"[^a-z0-9_-]", "-", tags[key].lower())[:63] for key in LABELS if tags.get(key)
    }
    return {**OURS, **short}


def _described(reason: str, tags: dict[str, str]) -> str:
    lines = [reason, "", *(f"{key}: {value}" for key, value in sorted(tags.items()) if value)]
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def _version(name: str, model: dict[str, Any]) -> ModelVersion:
    reason, _, rest = model.get("versionDescription", "").partition("\n\n")
    tags = dict(line.split(": ", 1) for line in rest.splitlines() if ": " in line)
    aliases = tuple(alias for alias in model.get("versionAliases", []) if alias != DEFAULT)
    created = model.get("versionCreateTime") or model.get("createTime", "")
    return ModelVersion(name, int(model["versionId"]), aliases, created.replace("Z", "+00:00"), reason, tags)
