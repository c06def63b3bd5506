"""Values: what a text, a pair, a label and an id may be, and reasons that can be printed anywhere."""

import datetime
import math
import uuid
from collections.abc import Callable
from decimal import Decimal

import pytest

from xlnet.data.values import BadValue, check_id, check_label, check_pair, check_text

HUGE = "9" * 5000


def why_not(check: Callable[..., object], value: object, *more: str) -> str:
    with pytest.raises(BadValue) as caught:
        check(value, *more)
    reason = caught.value.reason
    assert reason.encode().isascii() or "…" in reason
    assert reason.isprintable(), "no NUL, no line end, no surrogate"
    return reason


@pytest.mark.parametrize("text", ["a", " a ", "\ufeffa", "5", "👍🏽", "a\tb\nc", "a\u200b", "x" * 100_000])
def test_a_text_stays_as_it_is(text: str) -> None:
    assert check_text(text) == check_pair(text) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty text"),
        ("", "empty text"),
        (" \t\n\u3000", "empty text"),
        ("\ufeff", "empty text"),
        ("\u200b \u2060", "empty text"),
        (5, "text is int, not a string"),
        (True, "text is bool, not a string"),
        (math.nan, "text is float, not a string"),
        (b"bytes", "text is bytes, not a string"),
        (["a"], "text is list, not a string"),
        ({"a": 1}, "text is dict, not a string"),
        ("a\0b", "NUL byte"),
        ("ab\ud83d", "half of a surrogate pair: U+D83D at column 3"),
        ("\udc00\ud800", "half of a surrogate pair: U+DC00 at column 1"),
        ("b\udcffd", "not UTF-8: byte 0xff at column 2"),
    ],
)
def test_what_is_no_text_is_refused(value: object, reason: str) -> None:
    assert why_not(check_text, value) == reason
    assert why_not(check_pair, value) == reason.replace("text", "text_pair")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (" pos\r\n", "pos"),
        ("\ufeffpos\u200b", "pos"),
        ("two  words", "two  words"),
        ("nan", "nan"),
        ("--1", "--1"),
        (HUGE, HUGE),
        (2**63 + 1, "9223372036854775809"),
        (-(2**63), "-9223372036854775808"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (0, "0"),
        (1.0, "1.0"),
        (Decimal("1.10"), "1.10"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_a_class_is_a_string_a_number_or_a_boolean(value: object, label: str) -> None:
    assert check_label(value, "classification") == label


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no label"),
        (" \ufeff", "no label"),
        ([], "label is list, not a string or a number"),
        ([1], "label is list, not a string or a number"),
        ({"a": 1}, "label is dict, not a string or a number"),
        (b"pos", "label is bytes, not a string or a number"),
        (datetime.date(2026, 1, 1), "label is date, not a string or a number"),
        (math.nan, "label is not finite: nan"),
        (-math.inf, "label is not finite: -inf"),
        (Decimal("nan"), "label is not finite: NaN"),
        ("p\0s", "NUL byte"),
        ("\ud83d", "half of a surrogate pair: U+D83D at column 1"),
    ],
)
def test_what_is_no_class_is_no_number_either(value: object, reason: str) -> None:
    assert why_not(check_label, value, "classification") == reason
    assert why_not(check_label, value, "regression") == reason


def test_a_whole_number_may_be_longer_than_python_prints() -> None:
    assert check_label(10**5000, "classification") == "1" + "0" * 5000
    assert check_id(-(10**5000)) == "-1" + "0" * 5000


@pytest.mark.parametrize("value", ["1", " -2.5e3 ", ".5", 3, 2**64, 0.1, Decimal("0.1"), "3.4e38", "1e-60"])
def test_the_value_of_a_regression_is_kept_exactly(value: object) -> None:
    assert float(check_label(value, "regression")) == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("much", "label is not a number: 'much'"),
        ("1_000", "label is not a number: '1_000'"),
        ("3,5", "label has a decimal comma, where a point is read: '3,5'"),
        ("--1", "label is not a number: '--1'"),
        (True, "label is not a number: 'true'"),
        ("a\nb\x1b[2J", "label is not a number: 'a\\nb\\x1b[2J'"),
        ("NaN", "label is not finite: 'NaN'"),
        ("-inf", "label is not finite: '-inf'"),
        ("1e39", "label is beyond float32: '1e39'"),
        ("-1e400", "label is beyond float32: '-1e400'"),
        (10**400, f"label is beyond float32: '1{'0' * 38}…'"),
        (HUGE, f"label is beyond float32: '{'9' * 39}…'"),
    ],
)
def test_what_float32_cannot_hold_is_no_value(value: object, reason: str) -> None:
    assert why_not(check_label, value, "regression") == reason


def test_an_id_may_be_missing_and_keeps_its_digits() -> None:
    assert [check_id(one) for one in (None, "", " ", math.nan)] == [None] * 4
    assert check_id(2**63 + 1) == "9223372036854775809"
    assert check_id(" a 1 ") == "a 1"
    assert check_id(datetime.datetime(2026, 1, 2, 3)) == "2026-01-02 03:00:00"
    assert check_id(uuid.UUID(int=1)) == "00000000-0000-0000-0000-000000000001"
    assert why_not(check_id, {"a": 1}) == "id is dict, not a string or a number"
    assert why_not(check_id, b"\0") == "id is bytes, not a string or a number"
    assert why_not(check_id, "\ud800") == "half of a surrogate pair: U+D800 at column 1"
