"""Chooses how the Triton kernels of attention divide their work, from the table ``tiles.json``.

``tests/benchmarks/tune_tiles.py`` measures candidates on a GPU and writes the table.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_suffix(".json")
NARROW = 64  # heads up to this width share the entries of this width
OLDEST = 80  # compute capability


class Tile(NamedTuple):
    """How a kernel's programs divide their work.

    Attributes:
        queries: queries of a tile.
        keys: keys, or distances, of a tile.
        warps: warps of a program.
        stages: stages of its pipeline.
        turn: whether scores are moved between keys and distances in registers; queries and keys must then be equal in
            number. Otherwise they move through memory.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    turn: bool = False


class Tiling(NamedTuple):
    """How all kernels of a pass divide their work.

    Attributes:
        tiles: each kernel's tile, by the kernel's name; "" is that of the others.
        scores: maximum bytes of scores in memory at once, unless one head needs more.
    """

    tiles: dict[str, Tile]
    scores: int

    def tile(self, kernel: str) -> Tile:
        """Return a kernel's tile."""
        return self.tiles.get(kernel, self.tiles[""])


SCORES = 256 << 20
WIDE = Tiling({"": Tile(32, 32, 4, 1)}, SCORES)  # float32, which is multiplied without tensor cores


def plan(width: int, wide: bool, mean_length: float, capability: tuple[int, int]) -> Tiling:
    """Choose the tiles of a pass.

    Args:
        width: head width.
        wide: whether numbers are float32.
        mean_length: mean number of tokens per text.
        capability: the device's compute capability.
    """
    if wide:
        return WIDE if width <= NARROW else Tiling({"": Tile(32, 32, 8, 1)}, SCORES)
    able = max(10 * capability[0] + capability[1], OLDEST)
    entries = (entry for entry in table() if entry["capability"] <= able and max(width, NARROW) <= entry["width"])
    entry = next(entry for entry in entries if mean_length <= (entry["mean_length"] or float("inf")))
    tiles = {kernel: Tile(*numbers) for kernel, numbers in entry["tiles"].items()}
    chosen = Tiling(tiles, entry["scores_mib"] << 20)
    keys = chosen.tile("backward_keys")
    if keys.queries == 64 and width <= NARROW and capability < (9, 0):  # more would not fit into registers
        tiles["backward_keys"] = keys._replace(queries=32, turn=False)
    return chosen


@cache
def table() -> list[dict[str, Any]]:
    """Return the entries of the table, in the order in which they are tried.

    An entry holds the least compute capability (90 is 9.0) and the greatest head width and mean length that it is for
    (None: any length), the tiles, and how many MiB of scores there may be at once.
    """
    return json.loads(TABLE.read_text(encoding="utf-8"))["entries"]
