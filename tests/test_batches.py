"""Batches: every row once an epoch, within the budget, packed without padding."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from xlnet.data import batches
from xlnet.data.dataset import Split, open_dataset, schema
from xlnet.errors import CorruptArtifact, UserError


@pytest.fixture
def split(tmp_path):
    """Five rows, the fourth a pair."""
    ids = [[10, 4, 3], [11, 12, 13, 4, 3], [4, 3], [20, 4, 30, 31, 4, 3], [40, 41, 4, 3]]
    columns = {
        "input_ids": ids,
        "boundary": [2, 4, 1, 2, 3],
        "label": [0, 1, 0, 1, 1],
        "row": list(range(5)),
        "source": [0] * 5,
        "line": [1, 2, 3, 4, 5],
    }
    layout = pa.schema([field for field in schema("classification") if field.name in columns])
    table = pa.table(columns, schema=layout)
    folder = tmp_path / "train"
    folder.mkdir()
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        with pa.ipc.new_file(str(folder / f"{number:05}.arrow"), table.schema) as file:
            file.write_table(part, max_chunksize=1)
    return Split("train", tuple(sorted(folder.iterdir())))


def test_collate_packs_and_numbers_segments(split):
    batch = batches.collate(split, np.array([3, 2]))
    assert batch.input_ids_T.tolist() == [20, 4, 30, 31, 4, 3, 4, 3]
    assert batch.segment_ids_T.tolist() == [0, 0, 1, 1, 1, 2, 0, 2]
    assert batch.lengths_S.tolist() == [6, 2]
    assert batch.labels_S.tolist() == [1, 0]
    assert batch.tokens == 8


@pytest.mark.parametrize("budget", [1, 7, 64, 10_000])
@pytest.mark.parametrize("rows", [1, 2, 997])
def test_an_epoch_holds_every_row_once_within_the_budget(budget, rows):
    lengths = np.random.default_rng(0).integers(1, 40, rows)
    plan = batches.epoch_plan(lengths, budget, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(rows))
    for batch in plan:
        assert len(batch) == 1 or lengths[batch].sum() <= budget


def test_the_plan_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 40, 500)

    def flat(seed, epoch):
        return np.concatenate(batches.epoch_plan(lengths, 128, seed, epoch)).tolist()

    assert flat(0, 0) == flat(0, 0)
    assert flat(0, 0) != flat(0, 1)
    assert flat(0, 0) != flat(1, 0)


def test_batches_are_full():
    lengths = np.random.default_rng(0).geometric(1 / 15, 20_000).clip(3, 128)
    plan = batches.epoch_plan(lengths, 2048, seed=0, epoch=0)
    full = [lengths[rows].sum() / 2048 for rows in plan]
    assert sum(share > 0.99 for share in full) >= len(full) - 3, "but for each window's last"


def test_packing_is_first_fit_in_the_given_order():
    lengths = np.array([7, 5, 4, 3, 1, 12])
    packed = batches.pack(np.arange(6), lengths, 10)
    assert [rows.tolist() for rows in packed] == [[0, 3], [1, 2, 4], [5]]


@pytest.mark.parametrize("budget", [5, 64, 300])
def test_packing_equal_lengths_at_once_is_packing_them_one_by_one(budget):
    lengths = np.random.default_rng(1).geometric(1 / 9, 700).clip(1, 60)
    for order in (np.arange(700), np.argsort(-lengths, kind="stable")):
        room, expected = [], []
        for row in order.tolist():
            batch = next((i for i, left in enumerate(room) if left >= lengths[row]), len(room))
            if batch == len(room):
                room.append(budget)
                expected.append([])
            room[batch] -= lengths[row]
            expected[batch].append(row)
        assert [rows.tolist() for rows in batches.pack(order, lengths, budget)] == expected


def test_no_other_buckets_pad_less():
    lengths = np.random.default_rng(3).geometric(0.05, 400).clip(1, 120)

    def computed(buckets):
        return int(np.array(buckets)[np.searchsorted(buckets, lengths)].sum())

    edges = range(16, -(-int(lengths.max()) // 16) * 16, 16)
    for most in (1, 2, 3):
        found = batches.best_buckets(lengths, most, 16)
        assert len(found) <= most
        assert found[-1] == edges.stop
        every = [(*inner, edges.stop) for inner in itertools.combinations(edges, most - 1)]
        assert computed(found) == min(map(computed, every))
    assert batches.best_buckets(np.array([30, 30, 31]), 4, 16) == (32,)


def test_buckets_give_few_shapes_and_every_row_once():
    lengths = np.random.default_rng(0).geometric(1 / 15, 3000).clip(3, 128)
    plan = batches.bucket_plan(lengths, 1024, seed=0, epoch=2, buckets=(16, 32, 64, 128))
    assert sorted(np.concatenate([rows for rows, _ in plan]).tolist()) == list(range(3000))
    assert all(lengths[rows].max() <= length and len(rows) <= 1024 // length for rows, length in plan)
    assert sum(len(rows) < 1024 // length for rows, length in plan) <= 4, "only the last of each bucket"
    again = batches.bucket_plan(lengths, 1024, seed=0, epoch=2, buckets=(16, 32, 64, 128))
    assert all(np.array_equal(a, b) and m == n for (a, m), (b, n) in zip(plan, again, strict=True))
    assert {len(rows) for rows, length in plan if length == 128} <= set(range(9)), "chips share batches by 8 rows"
    with pytest.raises(UserError, match="a row has 119 tokens; the largest bucket holds 64"):
        batches.bucket_plan(lengths, 1024, 0, 0, (16, 64))


def test_padded_rows_are_left_padded_and_filled_up(split):
    batch = batches.collate_padded(split, np.array([2, 3]), slice(0, 3), length=7, pad_id=5)
    assert batch.input_ids_BL.tolist() == [[5, 5, 5, 5, 5, 4, 3], [5, 20, 4, 30, 31, 4, 3], [5, 5, 5, 5, 5, 4, 3]]
    assert batch.segment_ids_BL.tolist()[1] == [3, 0, 0, 1, 1, 1, 2]
    assert batch.real_BL.sum(1).tolist() == [2, 6, 2]
    assert (batch.weights_B.tolist(), batch.tokens) == ([1, 1, 0], 8)


def test_evaluation_sees_every_row_once(split):
    plan = list(batches.evaluation_batches(split, 8))
    assert sorted(i for batch in plan for i in batch.index_S) == list(range(5))
    assert [batch.tokens for batch in plan] == [5, 4, 5, 6]


def test_a_folder_that_is_no_dataset_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no card\.json; make one with: python -m xlnet preprocess"):
        open_dataset(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="damaged"):
        open_dataset(tmp_path)


def test_an_unknown_split_names_those_there_are(tmp_path):
    (tmp_path / "card.json").write_text('{"splits": {"train": {}}}')
    with pytest.raises(UserError, match="no split 'dev'; allowed: train"):
        open_dataset(tmp_path).split("dev")
