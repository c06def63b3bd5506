"""Compares generation with and without drafts, in turns within one process, on a model of your own.

    python tests/benchmarks/generate_drafts.py MODEL [--tokens 300] [--rounds 2] [--threads 1]

Prints for several settings: tokens per pass, refused drafts per token, and the processor time with drafts divided by
that without. The texts are equal, or it fails.
"""

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from xlnet.generation.decoder import Decoder
from xlnet.generation.drafts import continued
from xlnet.generation.sampling import Sampling
from xlnet.generation.writer import Writer

PROMPTS = ("this is one of the worst films I have ever seen", "the film was", "the actors are good, but the story")
SETTINGS = ({}, {"temperature": 1.0}, {"temperature": 0.7}, {"top_p": 0.9}, {"temperature": 0.5, "top_k": 40})


def write(writer, prompt, sampling, tokens, drafts):
    """The new tokens, how many drafts each pass checked, and the seconds of processor time."""
    ids, generator, checked, follow = writer.tokenizer.encode_part(prompt), sampling.generator(), [], Decoder.follow

    def counted(decoder, unread, start, guesses, likeliest):
        checked.append(len(guesses))
        return follow(decoder, unread, start, guesses, likeliest)

    begun = time.process_time()
    with patch.object(Decoder, "follow", counted), nullcontext() if drafts else patch.object(Decoder, "most_drafts", 0):
        decoder = Decoder(writer._weights, len(ids) + tokens, 2048)
        chosen = continued(decoder, ids, tokens, lambda one: sampling.choose(one, generator), sampling.likeliest)
        text = [token for token, _ in chosen]
    return text, checked, time.process_time() - begun


def measure(writer, settings, options):
    passes, refused, seconds = 0, 0, {True: 0.0, False: 0.0}
    for seed, prompt in enumerate(PROMPTS * options.rounds):
        texts = {}
        for drafts in (True, False, True, False):
            sampling = Sampling(**settings, seed=seed)
            texts[drafts], checked, took = write(writer, prompt, sampling, options.tokens, drafts)
            seconds[drafts] += took
            if drafts:
                passes += len(checked) / 2
                refused += (sum(checked) + len(checked) - options.tokens) / 2
        assert texts[True] == texts[False]
    count = options.tokens * options.rounds * len(PROMPTS)
    figures = {"tokens per pass": count / passes, "refused per token": refused / count}
    figures["time with drafts / without"] = seconds[True] / seconds[False]
    return settings | {name: round(one, 3) for name, one in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, default in {"tokens": 300, "rounds": 2, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    opened = Writer(chosen.model)
    write(opened, PROMPTS[0], Sampling(), 3, True)  # warms up
    for these in SETTINGS:
        print(json.dumps(measure(opened, these, chosen)))
