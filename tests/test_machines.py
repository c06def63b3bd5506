"""The machine table: complete and consistent rows, refusals that name the nearest machine, a user's prices."""

import json
import math
from pathlib import Path

import pytest

from xlnet.errors import UserError
from xlnet_pipeline.placement import machines
from xlnet_pipeline.placement.machines import MACHINES, Machine, Price, machine, offered, read_prices, refuse

ROWS = list(MACHINES.values())


def test_every_promised_machine_is_there() -> None:
    gpus = [
        f"{family}{count}"
        for family in ("l4", "a100-40g", "a100-80g", "h100", "h200")
        for count in ("", "-2", "-4", "-8")
    ]
    tpus = [f"{family}-{chips}" for family in ("v5e", "v6e") for chips in (1, 4, 8, 16, 32, 64, 128, 256)]
    assert list(MACHINES) == ["cpu", "t4", "t4-2", "t4-4", *gpus, *tpus]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_consistent(row: Machine) -> None:
    assert row.kind in machines.KINDS
    assert row.name == row.family or row.name.removeprefix(row.family + "-") == str(row.chips)
    assert (row.resource is None) == (row.kind == "cpu")
    assert (row.tpu_topology is not None) == (row.kind == "tpu")
    assert (row.accelerator_type is not None) == (row.kind == "gpu")
    assert bool(row.selectors) == (row.kind != "cpu")
    assert min(row.peak, row.memory_per_chip, row.host_memory, row.cpus) > 0
    assert set(row.targets) <= set(machines.TARGETS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "tpu"], ids=lambda row: row.name)
def test_topologies_hold_as_many_chips_as_the_name_says(row: Machine) -> None:
    sides = [int(side) for side in str(row.tpu_topology).split("x")]
    assert math.prod(sides) == row.chips == row.count * row.hosts
    assert row.selectors["cloud.google.com/gke-tpu-topology"] == row.tpu_topology
    assert row.machine_type.endswith(f"-{row.count}t")
    assert row.hosts == 1 or row.count == 4, "hosts of a slice with several hosts have four chips each"


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "gpu"], ids=lambda row: row.name)
def test_gpu_machine_types_hold_as_many_gpus_as_the_name_says(row: Machine) -> None:
    if row.machine_type.startswith(("a2-", "a3-")) and row.targets != ("local",):
        assert row.machine_type.endswith(f"-{row.chips}g")
    assert row.machine_type != "a3-ultragpu-8g" or row.cpus == 28 * row.chips


def test_what_can_be_bought_has_a_price_with_a_date() -> None:
    for row in [*offered("kfp"), *offered("vertex")]:
        assert row.price.spot
        assert row.price.spot < (row.price.on_demand or math.inf)
        assert (row.price.on_demand is None) == row.spot_only
        assert row.price.date == machines.DATE
        assert row.price.region == "us-central1"


def test_prices_differ_by_target() -> None:
    price = Price(2.0, 1.0)
    assert price.per_hour(spot=False) == 2.0
    assert price.per_hour(spot=True) == 1.0
    assert price.per_hour(spot=False, target="vertex") == pytest.approx(2.3)
    assert price.per_hour(spot=False, target="local") == 0.0
    assert Price(None, 1.0).per_hour(spot=False, target="vertex") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a100", "machine 'a100' is unknown; there are a100-40g, a100-40g-2"),
        ("l44", "machine 'l44' is unknown; did you mean 'l4"),
        ("v5e-2", "machine 'v5e-2' is unknown; there are v5e-1, v5e-4, v5e-8, v5e-16"),
        ("", "machine '' is unknown; allowed: cpu, t4"),
    ],
)
def test_unknown_machines_are_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        machine(name)


@pytest.mark.parametrize(
    ("name", "target", "best"),
    [
        ("h200", "vertex", "h200-8"),
        ("h200-2", "kfp", "h200-8"),
        ("v5e-256", "local", "v5e-8"),
        ("v6e-16", "local", "v6e-8"),
    ],
)
def test_what_a_target_lacks_is_refused_with_the_nearest_it_has(name: str, target: str, best: str) -> None:
    with pytest.raises(
        UserError, match=f"machine '{name}' is not offered on target '{target}'; the nearest is '{best}'"
    ):
        refuse(machine(name), target)


def test_what_a_target_has_is_not_refused() -> None:
    for target in machines.TARGETS:
        for row in offered(target):
            refuse(row, target)


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(
        UserError, match="target 'vertx' is unknown; allowed: local, kfp, vertex; did you mean 'vertex'"
    ):
        offered("vertx")


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_own_prices_go_before_the_list(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prices{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({"region": "europe-west4", "l4": 0.5, "v5e-4": {"on_demand": 3, "spot": 1.5}}))
    else:
        path.write_text('region = "europe-west4"\nl4 = 0.5\n[v5e-4]\non_demand = 3\nspot = 1.5\n')
    prices = read_prices(path)
    assert machine("l4", prices).price == Price(0.5, None, "europe-west4", "?", path.name)
    assert machine("v5e-4", prices).price.per_hour(spot=True) == 1.5
    assert machine("t4", prices) == machine("t4")
    assert {row.name: row for row in offered("kfp", prices)}["l4"].price.on_demand == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("l5 = 1.0", "machine 'l5' is unknown"),
        ("l4 = -1", "l4.on_demand is -1; it must be USD an hour"),
        ("l4 = true", "l4.on_demand is True"),
        ('l4 = "1"', "it must be USD an hour, such as 0.95"),
        ("l4 = {monthly = 3}", "unknown 'monthly'; allowed: on_demand, spot"),
        ("l4 =", "is not TOML"),
    ],
)
def test_bad_prices_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_prices(path)
    with pytest.raises(UserError, match="cannot read price file"):
        read_prices(tmp_path / "none.toml")
