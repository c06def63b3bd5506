"""Compares generation with transformers': the same weights, prompt and tokens, in turns within one process.

    python tests/benchmarks/generate_speed.py [tiny|small|base] [--tokens 200] [--prompt 32] [--rounds 3] [--threads 2]

Prints the seconds of transformers and of each precision of ours; their ratios, by the clock and by the processor, which
other work disturbs less; how many of the new tokens are equal; and our time per token at six places of a text.
"""

import argparse
import copy
import json
import operator
import statistics
import time

import torch
from transformers import XLNetConfig, XLNetLMHeadModel
from transformers.utils import logging

from xlnet.generation.decoder import Decoder
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
PLACES, AROUND = (50, 100, 200, 300, 400, 500), 12  # tokens whose time is given: the median of so many on each side


def models(shape):
    """Both models, with the same random weights."""
    torch.manual_seed(0)
    theirs = XLNetLMHeadModel(XLNetConfig(**shape)).eval()
    config = OurConfig(**shape, d_head=shape["d_model"] // shape["n_head"], task=PRETRAIN)
    ours = XLNetLanguageModel(config).eval()
    ours.load_state_dict(join_qkv(theirs.state_dict()), strict=False)
    return theirs, ours


def generate(weights, ids, tokens):
    """Our greedy text, and the seconds for each token."""
    text, times, unread = list(ids), [], len(ids)
    decoder = Decoder(weights, len(ids) + tokens, 4096)
    for _ in range(tokens):
        begun, known = time.perf_counter(), len(text)
        text.append(int(decoder.predict(text[-unread:], range(known - unread, known), known, 1).argmax()))
        unread = min(2, len(text))
        times.append(time.perf_counter() - begun)
    return text, times


def growth(weights, texts):
    """Milliseconds of the tokens at some places of a text, each token in its fastest text, and last to first."""
    found = [generate(weights, [100], PLACES[-1] + AROUND)[1] for _ in range(texts)]
    fastest = [min(times) for times in zip(*found, strict=True)]
    at = {place: 1000 * statistics.median(fastest[place - AROUND : place + AROUND]) for place in PLACES}
    return {place: round(one, 3) for place, one in at.items()} | {"last / first": round(at[500] / at[50], 3)}


def measure(options):
    shape = SHAPES[options.shape]
    theirs, ours = models(shape)
    ids = torch.randint(10, shape["vocab_size"], (1, options.prompt), generator=torch.Generator().manual_seed(1))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 5}
    sides = {one: DecoderWeights(copy.deepcopy(ours), one) for one in PRECISIONS}
    seconds = {name: [] for name in ("transformers", *sides)}
    processor = {name: [] for name in seconds}
    texts = {}
    for tokens in (3, *[options.tokens] * options.rounds):  # the first texts warm up
        for name in seconds:
            begun, worked = time.perf_counter(), time.process_time()
            if name == "transformers":
                texts[name] = theirs.generate(ids, max_new_tokens=tokens, **settings)[0].tolist()
            else:
                texts[name], _ = generate(sides[name], ids[0].tolist(), tokens)
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
        "ms per token": {name: growth(weights, options.texts) for name, weights in sides.items()},
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
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.set_verbosity_error()
    print(json.dumps(measure(chosen), indent=1))
