"""Small language models for tests: one of random weights that transformers wrote, and one that knows a toy language."""

import itertools

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from torch.nn import functional as F
from transformers import XLNetConfig as TheirConfig
from transformers import XLNetLMHeadModel

from xlnet.data.tokenizer import load_tokenizer, train_tokenizer
from xlnet.model.config import PRETRAIN, XLNetConfig
from xlnet.model.language_model import Text, XLNetLanguageModel
from xlnet.model.weights import save_model

WORDS = "the film was lovely and I liked it very much but food cold waiter never came back again so we went home"
LEFT, RIGHT = ("ann", "bob", "cyd"), ("figs", "ham", "pie")
FIRST = ("ate", "cut", "dug", "fed", "got", "had", "met", "saw", "won")
SECOND = ("big", "dry", "far", "hot", "icy", "low", "old", "raw", "wet")


def write_random(folder, layers=2, seed=0, **changes):
    """A model of random weights with a tokenizer; its likeliest tokens change from place to place."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([WORDS] * 30, 46, folder)
    torch.manual_seed(seed)
    size = {"d_model": 32, "n_head": 2, "d_inner": 64, "n_layer": layers, "vocab_size": tokenizer.vocab_size}
    theirs = XLNetLMHeadModel(TheirConfig(**size, **changes)).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.mul_(1.0 if "layer_norm" in name else 8.0)
    theirs.save_pretrained(folder)
    return theirs


def sentences():
    """The toy language: the two words in the middle follow from the first and the last together."""
    for (left, right), first, second in zip(itertools.product(LEFT, RIGHT), FIRST, SECOND, strict=True):
        yield f"{left} {first} {second} {right}"


def write_toy(folder, steps=200):
    """A model that was trained on the toy language, under random orders."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _words(folder)
    torch.manual_seed(0)
    model = XLNetLanguageModel(
        XLNetConfig(tokenizer.vocab_size, 2, 32, 2, 16, 64, dropout=0.0, initializer_range=0.2, task=PRETRAIN)
    )
    ids_BL = torch.tensor([tokenizer.encode_part(one) for one in sentences()])
    assert ids_BL.shape == (9, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    place_BP = torch.arange(4).expand(9, 4)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        order_BL = torch.rand(9, 4).argsort(1).int()
        hidden, _ = model(Text(ids_BL, None, order_BL, place_BP))
        loss = F.cross_entropy(model.logits(hidden).flatten(0, 1), ids_BL.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    save_model(model.state_dict(), model.config, folder)


def _words(folder):
    """A tokenizer with one token for each word of the toy language."""
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    words = [f"▁{word}" for word in (*LEFT, *RIGHT, *FIRST, *SECOND)]
    rust = RustTokenizer(models.Unigram([(piece, -1.0) for piece in (*special, *words)], unk_id=0))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    rust.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    rust.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    rust.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)
