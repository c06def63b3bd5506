"""Chooses a token from a model's logits: the likeliest, or a random one.

Shapes: V vocabulary.
"""

import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How each token is chosen. By default, and with temperature 0, it is always the likeliest one.

    Attributes:
        temperature: divides the logits; below 1, likely tokens become likelier.
        top_k: choose among this many of the likeliest tokens.
        top_p: choose among the likeliest tokens that together have at least this probability (Holtzman et al. 2020).
        seed: random seed.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse("temperature", self.temperature, float, lambda value: value >= 0, "0 (the likeliest token) or more")
        _refuse("top_k", self.top_k, int, lambda value: value >= 1, "a whole number from 1 on")
        _refuse("top_p", self.top_p, float, lambda value: 0 < value <= 1, "above 0, at most 1")
        _refuse("seed", self.seed, int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")

    @property
    def greedy(self) -> bool:
        """Whether always the likeliest token is chosen."""
        return self.temperature == 0 or (self.temperature, self.top_k, self.top_p) == (None, None, None)

    def generator(self) -> torch.Generator:
        """Return a random number generator with the seed. It runs on the CPU, so that all devices draw the same."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens it chooses among; 0: all of them."""
        return 1 if self.greedy else self.top_k or 0

    def choose(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """Choose a token. Logits of tokens that are not among the :attr:`likeliest` may be -inf."""
        if self.greedy:
            return int(logits_V.argmax())
        scores_V = logits_V.double().cpu()
        shares, tokens = self._cut((scores_V - scores_V.max()) / (self.temperature or 1.0))
        return int(tokens[torch.multinomial(shares, 1, generator=generator)])

    def _cut(self, scores_V: Tensor) -> tuple[Tensor, Tensor]:
        """Apply top-k and top-p; return the probabilities of the remaining tokens, and these tokens."""
        scores, tokens = scores_V.topk(min(self.top_k or len(scores_V), len(scores_V)))
        shares = scores.softmax(0)
        if self.top_p is not None:
            before = shares.cumsum(0) - shares
            kept = int((before < self.top_p).sum())  # at least 1
            shares, tokens = shares[:kept], tokens[:kept]
        return shares, tokens


def probability(logits_V: Tensor, token: int) -> float:
    """Return a token's probability before temperature, top-k and top-p."""
    return float(logits_V.double().log_softmax(0)[token].exp())


def new_seed() -> int:
    """Draw a random seed."""
    return secrets.randbelow(2**32)


def _refuse(name: str, value: object, kind: type, fits: object, allowed: str) -> None:
    """Raise UserError unless a setting is None, or a number of this kind that ``fits`` accepts."""
    if value is None:
        return
    kinds = (int,) if kind is int else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not fits(value):  # type: ignore[operator]
        raise UserError(f"{name} is {value!r}; allowed: {allowed}")
