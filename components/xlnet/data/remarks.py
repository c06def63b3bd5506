"""What a run says about its rows: lines of progress, and warnings of rejected, cut and repeated rows."""

import sys
from typing import Any

from xlnet.data import objects


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    """``3 of 1,000 (0.3%)``."""
    percent = 100 * part / max(1, whole)
    return f"{part:,} of {whole:,} ({'<0.1' if 0 < percent < 0.1 else f'{percent:.1f}'.removesuffix('.0')}%)"


def of_card(card: dict[str, Any], directory: str) -> list[str]:
    """Return a line for each kind of row that a dataset rejected, truncated or holds twice.

    Args:
        card: the dataset's card.
        directory: where the dataset will be.
    """
    splits, duplicates, rejects = card["splits"], card["duplicates"], card["rejects"]
    rows = {name: part["rows"] for name, part in splits.items()}
    lines = []
    if rejects["total"]:
        (reason, count), *_ = rejects["by_reason"].items()
        given = sum(rows.values()) + rejects["total"]
        lines.append(
            f"{share(rejects['total'], given)} rows are rejected, most often: {reason} ({count:,}); "
            f"each is listed in {objects.address(directory)}/rejects.jsonl"
        )
    truncated = sum(part["truncated"] for part in splits.values())
    if truncated:
        lines.append(
            f"{share(truncated, sum(rows.values()))} texts are longer than data.max_length = {card['max_length']} "
            "tokens and lose their ends; raise it if those matter"
        )
    for name in ("test", "validation"):
        if duplicates[f"train_{name}"]:
            lines.append(
                f"{share(duplicates[f'train_{name}'], rows[name])} {name} rows have a text that is also in train: "
                f"{'the score' if name == 'test' else 'the choice of the best checkpoint'} is better than it should be"
            )
    if duplicates["train"]:
        lines.append(f"{share(duplicates['train'], rows['train'])} train rows repeat the text of another")
    return lines
