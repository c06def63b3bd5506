"""The classes of a data set: their order, numbers that are equal, and names that look alike.

Whole numbers are compared digit by digit, however long they are: 64-bit class ids that floats cannot tell apart stay
apart.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation

from xlnet.data.values import shown

SHOWN = 5  # warnings of one kind
MISSING = {"\\n", "nan", "null", "none", "n/a", "<na>", "inf", "-inf", "infinity", "undefined"}
_WHOLE = re.compile(r"-?[0-9]+")
_FRACTION = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")


def ordered(names: Iterable[str]) -> list[str]:
    """Class names in index order: whole numbers by value, others by name."""
    names = list(names)
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (_by_value(name), name))
    return sorted(names)


def _by_value(name: str) -> tuple[int, int, str]:
    """Return a key that sorts whole numbers of any length: sign, then length, then digits."""
    digits = name.lstrip("-").lstrip("0")
    if name.startswith("-") and digits:
        return -1, -len(digits), digits.translate(_COMPLEMENT)
    return 0, len(digits), digits


_COMPLEMENT = str.maketrans("0123456789", "9876543210")


def number(name: str) -> Decimal | None:
    """Return the number that a name spells, exactly; None if it spells none."""
    try:
        return Decimal(name) if _FRACTION.fullmatch(name) else None
    except InvalidOperation:
        return None


def equal_numbers(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that spell the same number, such as ``1`` and ``1.0``; None if there are none."""
    by_value: dict[Decimal, str] = {}
    for name in names:
        if (value := number(name)) is not None and (other := by_value.setdefault(value, name)) != name:
            return other, name
    return None


def warnings(counts: Mapping[str, int], written: Mapping[str, str]) -> list[str]:
    """Return a warning for each pair of classes that may be one class by mistake. Both stay classes.

    Args:
        counts: rows of each class.
        written: maps each label that lost marks or spaces around it to its class.
    """
    found = [
        f"label {shown(raw)} counts as class {shown(name)}: spaces and marks around a label are taken off"
        for raw, name in list(written.items())[:SHOWN]
    ]
    found += _alike(counts)
    if len(counts) > 1 and len(ends := {name[-1:] for name in counts}) == 1 and (end := ends.pop()) in ",;:|":
        example = shown(next(iter(counts)))
        found.append(f"every class ends with {shown(end)}, such as {example}: does it separate fields?")
    booleans, digits = [[name for name in counts if name.lower() in kind] for kind in ({"true", "false"}, {"0", "1"})]
    if booleans and digits:
        found.append(f"{_both(counts, booleans[0], digits[0])}: are booleans and numbers the same label?")
    found += [
        f"class {shown(name)} has {counts[name]:,} row{'' if counts[name] == 1 else 's'}: is it a missing label?"
        for name in counts
        if name.lower() in MISSING
    ]
    return found


def _alike(counts: Mapping[str, int]) -> list[str]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in counts:
        groups[_folded(name)].append(name)
    pairs = [group for group in groups.values() if len(group) > 1]
    found = [f"{_both(counts, *group[:2])}: they {_difference(*group[:2])}" for group in pairs[:SHOWN]]
    return found + ([f"{len(pairs) - SHOWN} more pairs of classes look alike"] if len(pairs) > SHOWN else [])


def _both(counts: Mapping[str, int], one: str, other: str) -> str:
    names = [shown(name) if unicodedata.is_normalized("NFC", name) else ascii(name) for name in (one, other)]
    return f"classes {names[0]} ({counts[one]:,}) and {names[1]} ({counts[other]:,})"


def _folded(name: str) -> str:
    """Return a form of a name that is equal for names that look alike."""
    visible = "".join(one for one in unicodedata.normalize("NFKC", name) if unicodedata.category(one) != "Cf")
    return " ".join(visible.casefold().replace("_", " ").split())


def _difference(one: str, other: str) -> str:
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "differ in their Unicode form alone (NFC and NFD)"
    if one.casefold() == other.casefold():
        return "differ in upper and lower case alone"
    if "".join(one.split()) == "".join(other.split()):
        return "differ in spaces alone"
    return "look alike"
