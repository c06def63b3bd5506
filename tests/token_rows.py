"""A small dataset artifact of made-up token ids, and a recipe that learns it in seconds."""

import json

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from xlnet import provenance
from xlnet import recipe as recipes
from xlnet.data.dataset import schema

RECIPE = recipes.Recipe().replace(
    model={"n_layer": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32},
    training={"epochs": 4.0, "batch_tokens": 256, "learning_rate": 1e-2},
)


def write_dataset(path, task="classification", rows=240, seed=0, values=(0.0, 1.0)):
    """Rows whose label is whether token 10 or token 11 is in them, or one of two values."""
    generator = np.random.default_rng(seed)
    classification = task == "classification"
    for name, count in (("train", rows), ("validation", 60), ("test", 60)):
        labels = generator.integers(0, 2, count)
        bodies = [generator.integers(12, 40, generator.integers(2, 9)).tolist() for _ in range(count)]
        ids = [[10 + int(label), *body, 4, 3] for label, body in zip(labels, bodies, strict=True)]
        columns = {
            "input_ids": ids,
            "boundary": [len(row) - 1 for row in ids],
            "label": labels.tolist() if classification else [values[label] for label in labels],
            "row": list(range(count)),
            "source": [0] * count,
            "line": list(range(1, count + 1)),
        }
        if name != "train":
            columns |= {"text": ["x"] * count, "text_pair": [None] * count, "id": [None] * count}
        layout = pa.schema([field for field in schema(task) if field.name in columns])
        (path / name).mkdir(parents=True)
        with pa.ipc.new_file(str(path / name / "00000.arrow"), layout) as file:
            file.write_table(pa.table(columns, schema=layout))
    card = {"task": task, "classes": ["no", "yes"] if classification else [], "vocab_size": 40}
    card |= {"special_ids": {"pad": 5}, "splits": {"train": {}, "validation": {}, "test": {}}}
    (path / "card.json").write_text(json.dumps(card))
    (path / "recipe.json").write_text(RECIPE.part("data"))
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "spiece.model").write_bytes(b"stands for the real one")
    write_vocabulary(path / "tokenizer" / "tokenizer.json", card["vocab_size"])
    provenance.record(
        path, type="dataset", step="preprocess", started=provenance.now(), parameters={}, metadata={}, inputs=[]
    )
    return str(path)


def write_vocabulary(file, size):
    """A tokenizer of ``size`` words, XLNet's special tokens first."""
    pieces = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    pieces += [f"\u2581word{number}" for number in range(len(pieces), size)]
    Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=False)).save(str(file))
