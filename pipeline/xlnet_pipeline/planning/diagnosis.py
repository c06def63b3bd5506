"""The input and the result of the doctor's probes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlnet_pipeline.placement.machines import Machine

OK, BAD, UNSET = "ok", "bad", "-"
TIMEOUT = 5.0  # time-out of one request, seconds
SERVICE_USAGE = "https://serviceusage.googleapis.com"

Finding = tuple[str, ...]  # state, detail and optionally the remedy


@dataclass(frozen=True)
class Diagnosis:
    """The result of one probe. ``state``: ok, bad, or - if the service is not set up and was not tested."""

    name: str
    state: str
    detail: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}{self.name:<18}{self.detail}" + (f"; type: {self.repair}" if self.repair else "")


@dataclass(frozen=True)
class Environment:
    """What the probes test.

    Attributes:
        environment: variables that name services, as in ``os.environ``.
        exported: those of the variables that are not yet set in the shell.
        machine: machine whose quota to test; None: no quota.
        service_usage: URL of Google's Service Usage API.
        credentials: Google credentials; None: the application default.
    """

    environment: Mapping[str, str]
    exported: Mapping[str, str] | None = None
    machine: Machine | None = None
    service_usage: str = SERVICE_USAGE
    credentials: Any = None

    def __getitem__(self, name: str) -> str:
        return self.environment.get(name, "")
