"""The table of machines: what ``--machine NAME`` means on Vertex AI and GKE, and the figures that plan uses.

Sources. Machine types, topologies and node labels: Google Cloud's pages on accelerator-optimized machines, on TPUs in
GKE and on compute for Vertex AI training. Peaks: the makers' data sheets, dense bf16 (T4 has none: float16). Memory per
chip: what the driver leaves to a program, a little less than the name says. Prices: Compute Engine's list prices for
us-central1, machine included; Vertex AI adds :data:`VERTEX_FEE`. Spot prices move; so every price has its date and
region, and a user's own price file goes before them (:func:`read_prices`).
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xlnet.errors import UserError, nearest

TARGETS = ("local", "kfp", "vertex")
KINDS = ("cpu", "gpu", "tpu")
AUTO = "auto"  # not in the table: plan chooses a machine

VERTEX_FEE = 0.15  # share that Vertex AI training adds to Compute Engine's prices, for every row of its price list
REGION = "us-central1"
DATE = "2026-11-23"  # when the list prices were read
LIST = "list price"  # of Google's billing catalogue, as SkyPilot's catalogue republishes it
PARTLY = "list price; spot partly estimated"  # the accelerator's is listed, the host's part is not
OLDER = "list price of 2025; spot list price"  # on demand from Google's price page, not read again
SPOT_SELECTOR = MappingProxyType({"cloud.google.com/gke-spot": "true"})


@dataclass(frozen=True)
class Price:
    """USD per hour for the whole machine with all hosts. None: not sold that way."""

    on_demand: float | None
    spot: float | None
    region: str = REGION
    date: str = DATE
    source: str = LIST

    def per_hour(self, spot: bool, target: str = "kfp") -> float | None:
        """Return USD per hour on a target. This machine is free."""
        if target == "local":
            return 0.0
        price = self.spot if spot else self.on_demand
        return price if price is None or target != "vertex" else price * (1 + VERTEX_FEE)


@dataclass(frozen=True)
class Machine:
    """A kind of machine, and how to request it from Vertex AI and GKE.

    A TPU slice of several hosts is one machine: ``hosts`` replicas of ``machine_type``, ``count`` chips in each.
    """

    name: str
    kind: str  # cpu, gpu or tpu
    family: str  # the name without its count, such as l4 or v5e
    count: int  # accelerators in one host; 0: none
    machine_type: str  # of Compute Engine; Vertex AI takes the same names
    cpus: int  # virtual CPUs of one host
    host_memory: float  # GiB in one host
    memory_per_chip: float  # GiB; the host's for a CPU
    peak: float  # TFLOP/s of one chip (of the host for a CPU)
    price: Price
    hosts: int = 1
    accelerator_type: str | None = None  # Vertex AI's name of a GPU; TPUs are implied by their machine type
    tpu_topology: str | None = None
    selectors: Mapping[str, str] = field(default_factory=dict, hash=False)  # labels of GKE nodes
    targets: tuple[str, ...] = TARGETS
    spot_only: bool = False  # on Google Cloud only spot or flex-start

    @property
    def resource(self) -> str | None:
        """The resource that a pod requests, whose taint it tolerates; None for a CPU machine."""
        return {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}.get(self.kind)

    @property
    def chips(self) -> int:
        """Number of accelerators in all hosts. 1 for a CPU machine, whose CPU counts as the accelerator."""
        return max(1, self.count) * self.hosts


def machine(name: str, prices: Mapping[str, Price] | None = None) -> Machine:
    """Return the machine of that name, with the user's own price if there is one.

    Raises:
        UserError: the machine does not exist.
    """
    if name not in MACHINES:
        stem = name.rpartition("-")[0] or name
        family = [known for known, row in MACHINES.items() if stem and row.family.startswith(stem)]
        others = nearest(name, MACHINES) or f"; allowed: {', '.join(MACHINES)}"
        raise UserError(f"machine '{name}' is unknown" + (f"; there are {', '.join(family)}" if family else others))
    found = MACHINES[name]
    return dataclasses.replace(found, price=prices[name]) if prices and name in prices else found


def offered(target: str, prices: Mapping[str, Price] | None = None) -> list[Machine]:
    """List the machines that a target offers, each family from small to large.

    Raises:
        UserError: the target does not exist.
    """
    if target not in TARGETS:
        raise UserError(f"target '{target}' is unknown; allowed: {', '.join(TARGETS)}{nearest(target, TARGETS)}")
    return [machine(name, prices) for name, row in MACHINES.items() if target in row.targets]


def refuse(chosen: Machine, target: str) -> None:
    """Raise UserError unless the target offers the machine.

    Raises:
        UserError: the target does not offer it; the message names the nearest machine that it offers.
    """
    candidates = offered(target)
    if target in chosen.targets:
        return
    best = min(candidates, key=lambda other: _distance(chosen, other))
    raise UserError(f"machine '{chosen.name}' is not offered on target '{target}'; the nearest is '{best.name}'")


def _distance(asked: Machine, other: Machine) -> tuple[bool, bool, float]:
    """Return a sort key for how much two machines differ: by family, then kind, then computing power."""
    power = abs(math.log(asked.peak * asked.chips / (other.peak * other.chips)))
    return asked.family != other.family, asked.kind != other.kind, power


def read_prices(path: str | Path) -> dict[str, Price]:
    """Read a user's prices from TOML or JSON: machine → USD per hour, or → ``on_demand`` and ``spot``.

    The optional keys ``region`` and ``date`` say where and when the prices were valid.

    Raises:
        UserError: the file is missing or not TOML or JSON, or has an unknown machine or an invalid price.
    """
    path = Path(path)
    table = _read_table(path)
    place = {key: str(table.pop(key, "?")) for key in ("region", "date")}
    facts = {**place, "source": path.name}
    return {machine(name).name: _price(path, name, value, facts) for name, value in table.items()}


def _read_table(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read price file '{path}': {error.strerror}; name a .toml or .json file") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        form = "JSON" if path.suffix == ".json" else "TOML"
        raise UserError(f"price file '{path}' is not {form}: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"price file '{path}' is not a table; write lines such as: l4 = 0.95")
    return table


def _price(path: Path, name: str, value: Any, facts: dict[str, str]) -> Price:
    given = value if isinstance(value, dict) else {"on_demand": value}
    if unknown := [key for key in given if key not in ("on_demand", "spot")]:
        raise UserError(f"price file '{path}', {name}: unknown '{unknown[0]}'; allowed: on_demand, spot")
    for key, price in given.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
            raise UserError(f"price file '{path}', {name}.{key} is {price!r}; it must be USD an hour, such as 0.95")
    return Price(given.get("on_demand"), given.get("spot"), **facts)


# Rows. GPU: family, GKE label, Vertex name, GiB, TFLOP/s, and for each count: machine type, CPUs, GiB, USD on demand
# and on spot. An A3 machine of fewer than eight GPUs is sold on spot and flex-start only; an H200 alone by nobody.
_T4 = ("t4", "nvidia-tesla-t4", "NVIDIA_TESLA_T4", 15.0, 8.1)  # in float32: it has no bfloat16
_L4 = ("l4", "nvidia-l4", "NVIDIA_L4", 22.5, 121.0)
_A100 = ("a100-40g", "nvidia-tesla-a100", "NVIDIA_TESLA_A100", 39.4, 312.0)
_A100_80 = ("a100-80g", "nvidia-a100-80gb", "NVIDIA_A100_80GB", 79.2, 312.0)
_H100 = ("h100", "nvidia-h100-80gb", "NVIDIA_H100_80GB", 79.1, 989.0)
_H200 = ("h200", "nvidia-h200-141gb", "NVIDIA_H200_141GB", 139.8, 989.0)


def _gpu(
    chip: tuple[str, str, str, float, float],
    count: int,
    host: tuple[str, int, float],
    usd: tuple[float | None, float | None],
    *,
    spot_only: bool = False,
    targets: tuple[str, ...] = TARGETS,
    source: str = LIST,
) -> Machine:
    family, label, vertex, memory, peak = chip
    machine_type, cpus, host_memory = host
    return Machine(
        name=family if count == 1 else f"{family}-{count}",
        kind="gpu",
        family=family,
        count=count,
        machine_type=machine_type,
        accelerator_type=vertex,
        selectors=MappingProxyType({"cloud.google.com/gke-accelerator": label}),
        cpus=cpus,
        host_memory=host_memory,
        memory_per_chip=memory,
        peak=peak,
        price=Price(*usd, source=source),
        targets=targets,
        spot_only=spot_only,
    )


def _gpus() -> list[Machine]:
    rows = [
        _gpu(_T4, 1, ("n1-standard-8", 8, 30), (0.730, 0.279), source=PARTLY),
        _gpu(_T4, 2, ("n1-standard-16", 16, 60), (1.460, 0.558), source=PARTLY),
        _gpu(_T4, 4, ("n1-standard-32", 32, 120), (2.920, 1.116), source=PARTLY),
        _gpu(_L4, 1, ("g2-standard-12", 12, 48), (1.000, 0.400), source=PARTLY),
        _gpu(_L4, 2, ("g2-standard-24", 24, 96), (2.001, 0.800), source=PARTLY),
        _gpu(_L4, 4, ("g2-standard-48", 48, 192), (4.002, 1.600), source=PARTLY),
        _gpu(_L4, 8, ("g2-standard-96", 96, 384), (8.003, 3.200), source=PARTLY),
    ]
    for n in (1, 2, 4, 8):
        rows.append(_gpu(_A100, n, (f"a2-highgpu-{n}g", 12 * n, 85 * n), (3.673 * n, 1.804 * n)))
    for n in (1, 2, 4, 8):
        rows.append(_gpu(_A100_80, n, (f"a2-ultragpu-{n}g", 12 * n, 170 * n), (5.069 * n, 2.514 * n), source=OLDER))
    for n in (1, 2, 4):
        rows.append(_gpu(_H100, n, (f"a3-highgpu-{n}g", 26 * n, 234 * n), (None, 3.354 * n), spot_only=True))
    rows.append(_gpu(_H100, 8, ("a3-highgpu-8g", 208, 1872), (87.833, 26.830)))
    for n in (1, 2, 4):
        rows.append(_gpu(_H200, n, ("a3-ultragpu-8g", 28 * n, 368 * n), (None, None), targets=("local",)))
    rows.append(_gpu(_H200, 8, ("a3-ultragpu-8g", 224, 2952), (86.760, 40.994)))
    return rows


# TPU: chips → topology, hosts. Slices of more than eight chips have hosts with four chips each.
_SLICES = {1: ("1x1", 1), 4: ("2x2", 1), 8: ("2x4", 1)} | {
    16: ("4x4", 4),
    32: ("4x8", 8),
    64: ("8x8", 16),
    128: ("8x16", 32),
    256: ("16x16", 64),
}
_V5E_HOSTS = {1: (24, 48.0), 4: (112, 192.0), 8: (224, 384.0)}  # chips in a host → CPUs, GiB
_V6E_HOSTS = {1: (44, 176.0), 4: (180, 720.0), 8: (180, 1440.0)}


def _tpus(
    family: str,
    prefix: str,
    label: str,
    hosts_of: Mapping[int, tuple[int, float]],
    memory: float,
    peak: float,
    usd: Price,
) -> list[Machine]:
    rows = []
    for chips, (topology, hosts) in _SLICES.items():
        count = chips // hosts
        cpus, host_memory = hosts_of[count]
        selectors = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": topology}
        on_demand, spot = (None if price is None else price * chips for price in (usd.on_demand, usd.spot))
        rows.append(
            Machine(
                name=f"{family}-{chips}",
                kind="tpu",
                family=family,
                count=count,
                hosts=hosts,
                machine_type=f"{prefix}-{count}t",
                tpu_topology=topology,
                selectors=MappingProxyType(selectors),
                cpus=cpus,
                host_memory=host_memory,
                memory_per_chip=memory,
                peak=peak,
                price=dataclasses.replace(usd, on_demand=on_demand, spot=spot),
                targets=TARGETS if hosts == 1 else ("kfp", "vertex"),
            )
        )
    return rows


# 0.6 TFLOP/s: four cores at the 150 GFLOP/s in float32 that one core was measured to multiply matrices with.
_CPU = Machine(
    name="cpu",
    kind="cpu",
    family="cpu",
    count=0,
    machine_type="n2-standard-8",
    cpus=8,
    host_memory=32.0,
    memory_per_chip=32.0,
    peak=0.6,
    price=Price(0.388, 0.094, source=PARTLY),
)

MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        row.name: row
        for row in [
            _CPU,
            *_gpus(),
            *_tpus("v5e", "ct5lp-hightpu", "tpu-v5-lite-podslice", _V5E_HOSTS, 15.75, 197.0, Price(1.2, 0.245)),
            *_tpus("v6e", "ct6e-standard", "tpu-v6e-slice", _V6E_HOSTS, 31.25, 918.0, Price(2.7, 0.544)),
        ]
    }
)
