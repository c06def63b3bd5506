"""OpenMP's threads sleep soon where others want the processor."""

import importlib
import os

import pytest

import xlnet


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_spinning_is_bounded_unless_the_user_says_otherwise(given, expected, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    importlib.reload(xlnet)
    assert os.environ.get("GOMP_SPINCOUNT") == expected
