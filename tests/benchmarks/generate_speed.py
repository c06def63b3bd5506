"""Compares generation with transformers': the same weights, prompt and tokens, in turns within one process.

    python tests/benchmarks/generate_speed.py [tiny|small|base] [--tokens 200] [--prompt 32] [--rounds 3] [--threads 2]

Prints the seconds of each side, by the clock and by the processor, which other work disturbs less; their ratios;
whether the tokens are equal; and our processor time per token at several lengths.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import XLNetConfig, XLNetLMHeadModel
from transformers.utils import logging

from xlnet.generation.decoder import Decoder, DecoderWeights
from xlnet.model.config import PRETRAIN
from xlnet.model.config import XLNetConfig as OurConfig
from xlnet.model.language_model import XLNetLanguageModel
from xlnet.model.weights import join_qkv

SHAPES = {
    "tiny": {"n_layer": 2, "d_model": 64, "n_head": 4, "d_inner": 256, "vocab_size": 8000},
    "small": {"n_layer": 4, "d_model": 256, "n_head": 4, "d_inner": 1024, "vocab_size": 32000},
    "base": {"n_layer": 12, "d_model": 768, "n_head": 12, "d_inner": 3072, "vocab_size": 32000},
}
LENGTHS = (50, 150, 250, 350, 450, 500)  # where the time per token is measured
WINDOW = 20  # tokens over which it is averaged


def models(shape):
    """Both models, with the same random weights."""
    torch.manual_seed(0)
    theirs = XLNetLMHeadModel(XLNetConfig(**shape)).eval()
    config = OurConfig(**shape, d_head=shape["d_model"] // shape["n_head"], task=PRETRAIN)
    ours = XLNetLanguageModel(config).eval()
    ours.load_state_dict(join_qkv(theirs.state_dict()), strict=False)
    return theirs, ours


def generate(model, ids, tokens):
    """Our greedy text, and the processor's seconds for each token."""
    text, times, unread = list(ids), [], len(ids)
    decoder = Decoder(DecoderWeights(model), len(ids) + tokens, 4096)
    for _ in range(tokens):
        begun, known = time.process_time(), len(text)
        text.append(int(decoder.predict(text[-unread:], range(known - unread, known), known).argmax()))
        unread = min(2, len(text))
        times.append(time.process_time() - begun)
    return text, times


def measure(options):
    shape = SHAPES[options.shape]
    theirs, ours = models(shape)
    ids = torch.randint(10, shape["vocab_size"], (1, options.prompt), generator=torch.Generator().manual_seed(1))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 5}
    seconds, processor = {"transformers": [], "ours": []}, {"transformers": [], "ours": []}
    generate(ours, ids[0].tolist(), 3)
    theirs.generate(ids, max_new_tokens=3, **settings)
    texts = {}
    for _ in range(options.rounds):
        for name in seconds:
            begun, worked = time.perf_counter(), time.process_time()
            if name == "ours":
                texts[name], _ = generate(ours, ids[0].tolist(), options.tokens)
            else:
                texts[name] = theirs.generate(ids, max_new_tokens=options.tokens, **settings)[0].tolist()
            seconds[name].append(time.perf_counter() - begun)
            processor[name].append(time.process_time() - worked)
    _, times = generate(ours, ids[0, :1].tolist(), max(LENGTHS) + WINDOW)
    return {
        "shape": options.shape,
        "prompt": options.prompt,
        "tokens": options.tokens,
        **{name: [round(one, 3) for one in found] for name, found in seconds.items()},
        "ratio of seconds": round(min(seconds["transformers"]) / min(seconds["ours"]), 2),
        "ratio of processor seconds": round(min(processor["transformers"]) / min(processor["ours"]), 2),
        "same tokens": texts["transformers"] == texts["ours"],
        "ms per token": {at: round(1000 * statistics.median(times[at : at + WINDOW]), 3) for at in LENGTHS},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="small")
    for name, default in {"tokens": 200, "prompt": 32, "rounds": 3, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    logging.set_verbosity_error()
    print(json.dumps(measure(chosen), indent=1))
