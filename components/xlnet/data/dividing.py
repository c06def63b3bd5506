"""The survey step: reads all rows once, makes the vocabulary, and divides the rows into shards for other machines."""

import json
from dataclasses import asdict
from typing import Any

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data import survey as surveys
from xlnet.data import surveyed
from xlnet.data.remarks import counted, say
from xlnet.data.snapshot import Snapshot, of, snapshot_node
from xlnet.data.surveyed import Piece, Shard
from xlnet.data.vocabulary import make_tokenizer
from xlnet.errors import RunError, UserError
from xlnet.recipe import MOST_SHARDS, DataRecipe, Recipe

# Fields that do not change any row's tokens: they assign rows to splits, or limit rejects.
OF_OTHERS = {"train", "validation", "test", "labels", "validation_fraction", "test_fraction", "split_seed"}
OF_OTHERS |= {"tokenizer", "vocab_size", "max_rejects", "shards"}


def survey(recipe_json: str, snapshot: str, shards: int, out: str) -> tuple[dict[str, Any], list[str]]:
    """Survey the input and divide it.

    Args:
        recipe_json: JSON of a recipe, or of its ``data`` section.
        snapshot: digest that the input must have; empty: whatever it has.
        shards: number of shards. If there are fewer rows, some are empty.
        out: directory of the artifact to be written.

    Returns:
        Facts for the artifact's metadata, and the key of each shard in reading order.

    Raises:
        UserError: the input cannot be used as the recipe says, or the number is not allowed.
        RunError: the input changed after the snapshot.
    """
    if not 1 <= shards <= MOST_SHARDS:
        raise UserError(f"the number of shards is {shards}; allowed: 1 to {MOST_SHARDS}")
    started = provenance.now()
    whole = recipes.from_json(recipe_json)
    found = of(Recipe(data=whole.data, model=whole.model))
    if snapshot and found.digest != snapshot:
        raise RunError("the input changed after the snapshot was taken; run again")
    with provenance.making(out, "survey", "survey", started) as made:
        directory, rejects = made.directory, made.directory / surveyed.REJECTS
        with surveys.rejects_kept(rejects, out):
            seen, splits = surveys.look(found, whole.data, rejects)
        say(f"read {counted(len(splits), 'row')}, {seen.rejects.total():,} rejected")
        tokenizer = make_tokenizer(directory, seen, splits)
        vocabulary = provenance.digest_directory(tokenizer.directory)
        parts, first = [], 0
        for pieces in surveyed.divided(seen, shards):
            parts.append(Shard(_key(whole.data, found, vocabulary, pieces), first, pieces))
            first += parts[-1].rows
        surveyed.save(directory, seen, splits, parts)
        facts = {"rows": len(splits), "rejects": seen.rejects.total(), "shards": shards}
        made.parameters = {**json.loads(whole.part("data")), "shards": shards}
        made.metadata, made.inputs = facts, [snapshot_node(found, started)]
    print(f"{counted(len(splits), 'row')} in {counted(shards, 'shard')} of {min(p.rows for p in parts):,} or more rows")
    return facts, [one.key for one in parts]


def _key(recipe: DataRecipe, snapshot: Snapshot, vocabulary: str, pieces: tuple[Piece, ...]) -> str:
    reading = {name: value for name, value in asdict(recipe).items() if name not in OF_OTHERS}
    rows = [[asdict(snapshot.files[one.file].source), one.first, one.stop] for one in pieces]
    return provenance.digest_json([reading, vocabulary, rows]).removeprefix("sha256:")[:32]
