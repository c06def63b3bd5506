"""Refuses a registry on a pod's own disk, because it would be lost with the pod."""

import os
from pathlib import Path

from xlnet.errors import UserError

PODS = ("KFP_POD_NAME", "CLOUD_ML_JOB_ID")  # variables of steps on Kubeflow Pipelines and on Vertex AI
FILES = ("sqlite:///", "file://")  # prefixes of addresses in a file system


def refuse_own_disk(uri: str = "") -> None:
    """Check that the registry outlives this process's pod. Outside a pod, this does nothing.

    Raises:
        UserError: the registry is a file on the pod's own disk.
    """
    given = uri or os.environ.get("XLNET_REGISTRY") or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not any(os.environ.get(name) for name in PODS) or ("://" in given and not given.startswith(FILES)):
        return
    path = Path(next((given.removeprefix(one) for one in FILES if given.startswith(one)), given) or ".").absolute()
    place = next(one for one in (path, *path.parents) if one.exists())
    if place.stat().st_dev == Path("/").stat().st_dev:  # a volume is another device
        raise UserError(
            f"no tracking server: the registry {f'{given!r} ' if given else ''}would lie in this step's pod and go "
            "with it; set MLFLOW_TRACKING_URI to a server's address, or put that into the secret xlnet-registry "
            "(KFP_REGISTRY_SECRET names another)"
        )
