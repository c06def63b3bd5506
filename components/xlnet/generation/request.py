"""Checks a request to generate text: to continue a prompt, or to fill a gap."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xlnet.data.values import BadValue, check_text, shown
from xlnet.errors import UserError, nearest
from xlnet.generation.sampling import Sampling, new_seed

MARKER = "___"
TOKENS, MOST_TOKENS = 100, 100_000  # default and maximum of new tokens
MEMORY, MOST_MEMORY = 2048, 16_384  # default and maximum number of tokens that a new token sees
MOST_GAP = 512  # maximum tokens of a gap


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        prompt: the text to continue; for infilling, the whole text with its gap.
        tokens: maximum number of new tokens; for infilling, the number of tokens in the gap.
        sampling: how each new token is chosen.
        memory: how many of the last tokens a new token sees.
        past_end: go on after the model has ended the text.
        infill: fill the gap at the marker, seeing the text on both sides.
        marker: marks the gap in the prompt.
        order: the places of the gap, 0 first, in the order in which they are filled; empty: from left to right.
        probabilities: compute the probability of each new token.
    """

    prompt: str
    tokens: int = TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    memory: int = MEMORY
    past_end: bool = False
    infill: bool = False
    marker: str = MARKER
    order: tuple[int, ...] = ()
    probabilities: bool = True

    def __post_init__(self) -> None:
        _refuse_count("tokens", self.tokens, 1, MOST_GAP if self.infill else MOST_TOKENS)
        _refuse_count("memory", self.memory, 2, MOST_MEMORY)
        for name in ("past_end", "infill"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} is {getattr(self, name)!r}; allowed: true or false")
        try:
            check_text(self.prompt)
        except BadValue as error:
            what = error.reason.replace("empty text", "it is empty").replace("text is", "it is")
            raise UserError(f"the prompt cannot be used: {what}; give the model a text to go on from") from None
        if self.infill:
            self._check_gap()
        elif self.order or self.marker != MARKER:
            raise UserError(
                f"{'order' if self.order else 'marker'} is given without infill; add infill, or leave it out"
            )

    def _check_gap(self) -> None:
        if not isinstance(self.marker, str) or not self.marker.strip():
            raise UserError(f"marker is {self.marker!r}; allowed: a text that marks the gap, such as {MARKER}")
        count = self.prompt.count(self.marker)
        if count != 1:
            how = "is not in the prompt" if not count else f"is in the prompt {count} times"
            raise UserError(
                f"the gap's mark {shown(self.marker)} {how}; write it once, where tokens are to be filled in"
            )
        if not self.order:
            return
        if sorted(self.order) != list(range(len(self.order))):
            last = len(self.order) - 1
            given = list(self.order)[:20]
            raise UserError(f"the order {given} is not a permutation of 0 to {last}; name each place once")
        if len(self.order) != self.tokens:
            raise UserError(f"the order names {len(self.order)} places, and tokens is {self.tokens}; make them equal")

    @property
    def around(self) -> tuple[str, str]:
        """The text before the new tokens, without the spaces at its end, and the text after them."""
        before, _, after = self.prompt.partition(self.marker) if self.infill else (self.prompt, "", "")
        return before.rstrip(), after

    @property
    def in_order(self) -> bool:
        """Whether the new tokens are written from left to right."""
        return list(self.order) == sorted(self.order)


def request_of(values: Mapping[str, Any]) -> Request:
    """Make a request from named values, as a command line or a client gives them; None means the default.

    Raises:
        UserError: a value cannot be used, or its name is not known.
    """
    given = {name: value for name, value in values.items() if value is not None}
    sampling = ("temperature", "top_k", "top_p", "seed")
    own = ("prompt", "tokens", "memory", "past_end", "infill", "marker", "order")
    if unknown := [name for name in given if name not in (*sampling, *own)]:
        allowed = ", ".join((*own, *sampling))
        raise UserError(
            f"unknown field {shown(unknown[0])}{nearest(unknown[0], (*own, *sampling))}; allowed: {allowed}"
        )
    if "prompt" not in given:
        raise UserError("there is no prompt; give the model a text to go on from")
    chosen = Sampling(**{"seed": new_seed(), **{name: given[name] for name in sampling if name in given}})
    if "order" in given:
        given["order"] = _order(given["order"])
        given.setdefault("tokens", len(given["order"]))
    return Request(sampling=chosen, **{name: given[name] for name in own if name in given})


def _order(given: Any) -> tuple[int, ...]:
    """Read an order: a list of numbers, or a text such as ``2,0,1``."""
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not parts or len(parts) > MOST_GAP:
        raise UserError(f"order is {str(given)[:40]!r}; allowed: whole numbers from 0 on, such as 2,0,1")
    numbers: list[Any] = [int(one) if isinstance(one, str) and one.strip().isdecimal() else one for one in parts]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers):
        raise UserError(f"order is {str(given)[:40]!r}; allowed: whole numbers from 0 on, such as 2,0,1")
    return tuple(numbers)


def _refuse_count(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name} is {value!r}; allowed: whole numbers from {low} to {high:,}")
