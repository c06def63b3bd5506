"""Compares generation with transformers': the same weights, prompt and tokens, in turns within one process.

    python tests/benchmarks/generate_speed.py [tiny|small|base] [--tokens 200] [--prompt 32] [--rounds 3] [--threads 2]

Prints the seconds of transformers and of each precision of ours; their ratios, by the clock and by the processor, which
other work disturbs less; how many of the new tokens are equal; how many different ones there are, as drafts help a text
that repeats itself; and our processor time per token around six places of a text. Larger weights (--range 0.2) repeat
less.
"""

import argparse
import copy
import json
import operator
import time
from contextlib import nullcontext
from unittest.mock import patch

import torch
from transformers import XLNetConfig, XLNetLMHeadModel
from transformers.utils import logging

from xlnet.generation.decoder import Decoder
from xlnet.generation.drafts import continued
from xlnet.generation.weights import DecoderWeights
from xlnet.model.config import PRETRAIN
from xlnet.model.config import XLNetConfig as OurConfig
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.weights import join_qkv

SHAPES = {
    "tiny": {"n_layer": 2, "d_model": 64, "n_head": 4, "d_inner": 256, "vocab_size": 8000},
    "small": {"n_layer": 4, "d_model": 256, "n_head": 4, "d_inner": 1024, "vocab_size": 32000},
    "base": {"n_layer": 12, "d_model": 768, "n_head": 12, "d_inner": 3072, "vocab_size": 32000},
}
PRECISIONS = ("float32", "bfloat16", "int8")
PLAIN = "float32 without drafts"
PLACES, AROUND = (50, 100, 200, 300, 400, 500), 12  # tokens whose time is given: the median of so many on each side


def models(shape, initializer_range=0.02):
    """Both models, with the same random weights."""
    torch.manual_seed(0)
    theirs = XLNetLMHeadModel(XLNetConfig(**shape, initializer_range=initializer_range)).eval()
    config = OurConfig(**shape, d_head=shape["d_model"] // shape["n_head"], task=PRETRAIN)
    ours = XLNetLanguageModel(config).eval()
    ours.load_state_dict(join_qkv(theirs.state_dict()), strict=False)
    return theirs, ours


def generate(weights, ids, tokens, drafts=True):
    """Our greedy text, and the seconds of processor time until each token."""
    text, times, begun = list(ids), [], time.process_time()
    decoder = Decoder(weights, len(ids) + tokens, 4096)
    with nullcontext() if drafts else patch.object(Decoder, "most_drafts", 0):
        for token, _ in continued(decoder, ids, tokens, lambda logits_V: int(logits_V.argmax()), 1):
            text.append(token)
            times.append(time.process_time() - begun)
    return text, times


def growth(weights, texts, drafts):
    """Milliseconds of processor time per token around some places, the fastest of some texts, and last to first."""
    found = [generate(weights, [100], PLACES[-1] + AROUND, drafts)[1] for _ in range(texts)]
    at = {
        place: min(times[place + AROUND - 1] - times[place - AROUND - 1] for times in found) * 1000 / (2 * AROUND)
        for place in PLACES
    }
    return {place: round(one, 3) for place, one in at.items()} | {"last / first": round(at[500] / at[50], 3)}


def measure(options):
    shape = SHAPES[options.shape]
    theirs, ours = models(shape, options.range)
    ids = torch.randint(10, shape["vocab_size"], (1, options.prompt), generator=torch.Generator().manual_seed(1))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 5}
    sides = {one: DecoderWeights(copy.deepcopy(ours), one) for one in options.precisions.split(",")}
    sides = {PLAIN: sides["float32"]} | sides if "float32" in sides else sides
    seconds = {name: [] for name in ("transformers", *sides)}
    processor = {name: [] for name in seconds}
    texts = {}
    for tokens in (3, *[options.tokens] * options.rounds):  # the first texts warm up
        for name in seconds:
            begun, worked = time.perf_counter(), time.process_time()
            if name == "transformers":
                texts[name] = theirs.generate(ids, max_new_tokens=tokens, **settings)[0].tolist()
            else:
                texts[name], _ = generate(sides[name], ids[0].tolist(), tokens, name != PLAIN)
            if tokens == options.tokens:
                seconds[name].append(time.perf_counter() - begun)
                processor[name].append(time.process_time() - worked)
    new = {name: text[options.prompt :] for name, text in texts.items()}
    return {
        **vars(options),
        "seconds": {name: [round(one, 3) for one in found] for name, found in seconds.items()},
        "ratio of seconds": {name: ratio(seconds, name) for name in sides},
        "ratio of processor seconds": {name: ratio(processor, name) for name in sides},
        "equal tokens": {name: sum(map(operator.eq, new[name], new["transformers"])) for name in sides},
        "different tokens": len(set(new["transformers"])),
        "ms per token": {name: growth(weights, options.texts, name != PLAIN) for name, weights in sides.items()},
    }


def ratio(seconds, name):
    """How many times as fast as transformers: the best of all rounds, and the worst and the best round."""
    rounds = [theirs / ours for theirs, ours in zip(seconds["transformers"], seconds[name], strict=True)]
    return [round(one, 2) for one in (min(seconds["transformers"]) / min(seconds[name]), min(rounds), max(rounds))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="small")
    for name, default in {"tokens": 200, "prompt": 32, "rounds": 3, "threads": 2, "texts": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--range", type=float, default=0.02, help="standard deviation of the random weights")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.set_verbosity_error()
    print(json.dumps(measure(chosen), indent=1))
