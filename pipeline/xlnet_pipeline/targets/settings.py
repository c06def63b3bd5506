"""Reads how to reach a target, from environment variables or from a recipe file's ``[target.kfp]`` and similar tables.

A variable overrides the table. Secrets come from the environment alone: a table that holds one is refused. Nothing
is read when this module is imported, and no secret is part of a value's printed form.
"""

import dataclasses
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from xlnet.data.addresses import GCS, MINIO, S3
from xlnet.errors import UserError, nearest
from xlnet.redaction import holds_secret, redacted

DEFAULT_FILE = "recipe.toml"
KIND_FILE = "kind.env"  # make kind-up writes it: the variables that lead to the kind cluster


def _variable(name: str, default: str = "", *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"variable": name, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """The settings that all targets have in common. On this machine they are empty.

    Attributes:
        image: the image that steps run in unless the submission names another.
        image_registry: the registry of images whose name has none.
        pipeline_root: address of a remote target's artifacts.
        tracking_uri: address of the MLflow server with the model registry.
    """

    image: str = _variable("XLNET_IMAGE")
    image_registry: str = _variable("CONTAINER_IMAGE_REGISTRY")
    pipeline_root: str = ""
    tracking_uri: str = _variable("MLFLOW_TRACKING_URI")

    @property
    def registry(self) -> str:
        """The address of the target's model registry if the recipe names none; empty if unknown."""
        return self.tracking_uri


@dataclass(frozen=True)
class KfpSettings(Settings):
    """A Kubeflow Pipelines installation."""

    endpoint: str = _variable("KFP_ENDPOINT")
    namespace: str = _variable("KFP_NAMESPACE")
    experiment: str = _variable("KFP_EXPERIMENT", "xlnet")
    pipeline_root: str = _variable("KFP_PIPELINE_ROOT")
    service_account: str = _variable("KFP_SERVICE_ACCOUNT")
    registry_secret: str = _variable("KFP_REGISTRY_SECRET")  # a Kubernetes secret with the key MLFLOW_TRACKING_URI
    s3_endpoint: str = _variable("KFP_S3_ENDPOINT")  # where pods reach S3; for minio:// the cluster's own by default
    s3_secret: str = _variable("KFP_S3_SECRET")  # a Kubernetes secret with the keys accesskey and secretkey
    token: str = _variable("KFP_TOKEN", secret=True)

    @property
    def address(self) -> str:
        """The endpoint without the path that a browser or the API appends to it."""
        return re.split(r"/+(?:#|apis(?:/|$))", self.endpoint)[0].rstrip("/")

    def storage(self) -> tuple[dict[str, str], str]:
        """Return what steps need to reach an S3 pipeline root: variables, and the secret with the keys ('' if none).

        A minio:// root, which Kubeflow Pipelines also uses if a compiled file names no root, is in the S3 store of the
        installation; its address and secret have defaults.
        """
        own = not self.pipeline_root or self.pipeline_root.startswith(MINIO)
        endpoint = self.s3_endpoint or (f"http://seaweedfs.{self.namespace or 'kubeflow'}:9000" if own else "")
        secret = self.s3_secret or (CLUSTER_S3 if own else "")
        return ({"AWS_ENDPOINT_URL_S3": endpoint} if endpoint else {}), secret


@dataclass(frozen=True)
class VertexSettings(Settings):
    """A Google Cloud project with Vertex AI."""

    project: str = _variable("VERTEX_PROJECT_ID")
    location: str = _variable("VERTEX_LOCATION", "us-central1")
    pipeline_root: str = _variable("VERTEX_PIPELINE_ROOT")
    service_account: str = _variable("VERTEX_SA_EMAIL")
    endpoint: str = _variable("VERTEX_ENDPOINT")
    logging_endpoint: str = _variable("VERTEX_LOGGING_ENDPOINT", "https://logging.googleapis.com")

    @property
    def parent(self) -> str:
        """The resource name of project and location, which all other names begin with."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def registry(self) -> str:
        """The registry's address if the recipe names none."""
        return self.tracking_uri or f"vertex://{self.project}/{self.location}"


REQUIRED = {KfpSettings: ("endpoint", "pipeline_root"), VertexSettings: ("project", "pipeline_root")}
ROOTS = {KfpSettings: (GCS, S3, MINIO), VertexSettings: (GCS,)}
CLUSTER_S3 = "mlpipeline-minio-artifact"  # the secret of Kubeflow Pipelines' own S3
TABLES: dict[Any, str] = {KfpSettings: "kfp", VertexSettings: "vertex"}
Remote = TypeVar("Remote", KfpSettings, VertexSettings)


def read(kind: type[Remote], file: str | Path | None = None, needs: Collection[str] | None = None) -> Remote:
    """Return the settings of a target.

    Args:
        kind: the class of the settings.
        file: a recipe file; None: ``recipe.toml`` in the working directory, if there is one.
        needs: required settings; None: the ones needed to reach the target.

    Raises:
        UserError: a setting is unknown or missing, or the file holds a secret.
    """
    name = TABLES[kind]
    table = _table(name, file)
    if kind is KfpSettings and not table.get("endpoint"):
        use_kind()
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"unknown setting 'target.{name}.{key}'; allowed: {', '.join(known)}{nearest(key, known)}")
        if known[key].metadata["secret"]:
            raise UserError(f"target.{name}.{key} is a secret; set {known[key].metadata['variable']} instead")
        if not isinstance(value, str):
            raise UserError(f"target.{name}.{key} is {value!r}; it must be a string")
    values = {key: os.environ.get(item.metadata["variable"]) or table.get(key) for key, item in known.items()}
    found = kind(**{key: value for key, value in values.items() if value})
    missing = [key for key in (REQUIRED[kind] if needs is None else needs) if key in known and not getattr(found, key)]
    if missing:
        variables = _listed([known[key].metadata["variable"] for key in missing])
        what = missing[0] if len(missing) == 1 else "them"
        raise UserError(
            f"target '{name}' needs {_listed(missing)}: set {variables}, or write {what} under [target.{name}]"
            + (" (the image also with --image)" if "image" in missing else "")
        )
    refuse_password(found.tracking_uri, "MLFLOW_TRACKING_URI")
    root = found.pipeline_root
    scheme = next((one for one in ROOTS[kind] if root.startswith(one)), "")
    if root and not (scheme and root.removeprefix(scheme).partition("/")[0]):
        allowed = " or ".join(f"{scheme}BUCKET/FOLDER" for scheme in ROOTS[kind])
        raise UserError(f"target '{name}': pipeline_root '{root}' is not {allowed}")
    return found


def use_kind(file: str | Path = KIND_FILE) -> None:
    """Set the variables from the file of ``make kind-up``, if it exists and no other installation is named.

    boto3 reads its keys from the environment itself. Variables that are set already keep their values.
    """
    path = Path(file)
    if os.environ.get("KFP_ENDPOINT") or not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); make it again: make kind-up") from None
    for line in lines:
        variable, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            os.environ.setdefault(variable.strip(), value)


def needed(name: str, *, image: bool = False, offline: bool = False) -> tuple[str, ...]:
    """Return the settings that submitting to a target, or compiling for it, requires.

    Args:
        name: name of the target.
        image: whether the submission names an image, so that the settings need none.
        offline: whether nothing is sent, so that no endpoint is needed.
    """
    kinds = [kind for kind, table in TABLES.items() if table == name]
    keys = [key for kind in kinds for key in REQUIRED[kind] if not (offline and key == "endpoint")]
    return (*keys, *([] if image else ["image"]))


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def variables(file: str | Path | None = None) -> dict[str, str]:
    """Return the settings in a recipe file's ``[target]`` tables, named like the environment variables.

    Raises:
        UserError: the file cannot be read, or ``target`` in it is not a table of tables.
    """
    found: dict[str, str] = {}
    for kind, name in TABLES.items():
        table = _table(name, file)
        known = {item.name: item.metadata for item in dataclasses.fields(kind) if not item.metadata["secret"]}
        found |= {known[key]["variable"]: value for key, value in table.items() if key in known and value}
    return found


def registry_of(target: str, known: Mapping[str, str]) -> str:
    """Return the registry's address according to variables, which may be incomplete; empty if unknown."""
    project = known.get("VERTEX_PROJECT_ID", "") if target == "vertex" else ""
    place = f"vertex://{project}/{known.get('VERTEX_LOCATION', 'us-central1')}" if project else ""
    return known.get("MLFLOW_TRACKING_URI", "") or place


def refuse_password(uri: str, name: str) -> None:
    """Check that an address holds no password, because everybody can read a compiled file.

    Raises:
        UserError: the address holds a password.
    """
    if holds_secret(uri):
        raise UserError(
            f"{name} '{redacted(uri)}' holds a password, which would stand in the compiled pipeline; keep it in a "
            "Kubernetes secret (key MLFLOW_TRACKING_URI) and name that in KFP_REGISTRY_SECRET"
        )


def _table(name: str, file: str | Path | None) -> dict[str, Any]:
    path = Path(file or DEFAULT_FILE)
    if file is None and not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("target", {})
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; name a recipe file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe '{path}' is not TOML: {error}") from None
    if not isinstance(tables, dict):
        raise UserError("target must be a table: [target.kfp] or [target.vertex] with settings below it")
    for key in tables:
        if key not in TABLES.values():
            raise UserError(
                f"unknown table [target.{key}]; allowed: target.kfp, target.vertex{nearest(key, ['kfp', 'vertex'])}"
            )
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise UserError(f"target.{name} must be a table: [target.{name}] with settings below it")
    return found


def image_of(settings: Settings, given: str | None) -> str:
    """Return the image to run: the given one, or else that of the settings. Add the registry if the name has none.

    Raises:
        UserError: no image is given or set.
    """
    image = given or settings.image
    if not image:
        raise UserError("no image: type --image REGISTRY/NAME@sha256:…, or set XLNET_IMAGE")
    return in_registry(image, settings.image_registry)


def in_registry(image: str, registry: str) -> str:
    """Return the image's full name: put the settings' registry before a name without a registry."""
    return f"{registry.rstrip('/')}/{image}" if image and registry and "/" not in image else image
