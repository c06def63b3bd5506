"""The model of many devices: its arithmetic by hand, and the document's tables as the script makes them."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
from conftest import CHECKOUT

from xlnet.recipe import PRESETS
from xlnet.training import distributed
from xlnet_pipeline.placement.machines import MACHINES
from xlnet_pipeline.planning import network
from xlnet_pipeline.planning.network import Gradients, Links, links, waited

SCRIPT = CHECKOUT / "tests" / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> object:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_tables_are_those_of_the_script(scaling) -> None:  # type: ignore[no-untyped-def]
    page = Path(scaling.PAGE).read_text(encoding="utf-8")
    assert scaling.filled(page) == page, "type: python tests/benchmarks/scaling.py --write"


def test_more_devices_are_never_slower_nor_more_than_so_many_times_as_fast(scaling) -> None:  # type: ignore[no-untyped-def]
    for preset in PRESETS:
        for family in scaling.FAMILIES:
            rates = [rate for count in scaling.DEVICES if (rate := scaling.rate(preset, family, count))]
            assert rates == sorted(rates)
            shares = [
                rate / rates[0] / count for count in scaling.DEVICES if (rate := scaling.rate(preset, family, count))
            ]
            assert all(share <= 1 for share in shares)
            assert all(after <= before + 1e-9 for before, after in itertools.pairwise(shares))


def test_the_buckets_are_the_trainers() -> None:
    assert network.BUCKET == distributed.BUCKET


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_of_the_table_has_a_network(name: str) -> None:
    machine = MACHINES[name]
    found = links(machine, 2)
    assert found.inside > 0
    assert machine.kind == "tpu" or 1 < found.between < 1000


def test_an_exchange_by_hand() -> None:
    alone = Links(1, 1, 100.0, 10.0, 0.0, 0.0)
    assert alone.all_reduce(1e9) == 0
    assert Links(2, 1, 100.0, 10.0, 0.0, 0.0).all_reduce(1e9) == pytest.approx(0.01), (
        "half of it there, half of it back"
    )
    assert Links(4, 1, 100.0, 10.0, 0.0, 0.0).all_reduce(1e9) == pytest.approx(0.015)
    assert Links(8, 2, 100.0, 10.0, 0.0, 0.0).all_reduce(1e9) == pytest.approx(2 * 15 / 16 / 10), "the network decides"
    assert Links(1, 2, 1.0, 10.0, 0.0, 0.0).all_reduce(1e9) == pytest.approx(0.1), "one device a machine knows no other"
    ring = Links(4, 1, math.inf, 1.0, 1e-3)
    assert ring.all_reduce(0) == pytest.approx(6e-3)
    tree = Links(8, 16, math.inf, math.inf, 1e-6, 1e-3)
    assert tree.all_reduce(0) == pytest.approx(2 * 4e-3 + 14e-6), "less than a ring of 128"


def test_the_backward_pass_hides_what_is_done_in_time() -> None:
    net = Links(2, 1, network.BUCKET / 1e9, 0.0, 0.0)  # a bucket a second
    dense = Gradients(dense=4 * network.BUCKET // network.NUMBER, table=0)
    assert waited(dense, net, 0.0) == pytest.approx(4.0), "nothing is hidden"
    assert waited(dense, net, 40.0) == pytest.approx(1.0), "all but the last bucket, which is ready at the end"
    assert waited(dense, net, 2.0) == pytest.approx(0.5 + 4 - 2), "the first is ready after half a second"
    table = Gradients(dense=0, table=2 * network.BUCKET // network.NUMBER)
    assert waited(table, net, 40.0) == pytest.approx(2.0), "the table's gradient comes after"
    rows = Gradients(dense=0, table=10**9, rows=1000, width=256)
    sent = 1000 * (256 * 4 + 8)
    assert waited(rows, net, 0.0) == pytest.approx(sent / network.BUCKET), "only the rows that a batch used"
