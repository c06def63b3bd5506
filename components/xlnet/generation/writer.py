"""Opens a language model's directory and generates text with it, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from xlnet.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, refuse_misfit
from xlnet.errors import UserError
from xlnet.generation.decoder import Decoder
from xlnet.generation.drafts import continued
from xlnet.generation.request import Request
from xlnet.generation.sampling import probability
from xlnet.generation.weights import DecoderWeights
from xlnet.model.config import tokenizer_digest
from xlnet.model.language_model import XLNetLanguageModel


@dataclass(frozen=True)
class Token:
    """A token that was written.

    Attributes:
        id: the token.
        text: what it adds to the text; special tokens add nothing.
        probability: its probability before temperature, top-k and top-p; None if the request does not ask for it.
        place: its place among the new tokens, from 0.
    """

    id: int
    text: str
    probability: float | None
    place: int


@dataclass(frozen=True)
class Writer:
    """An open language model, written by this project or by ``transformers``.

    Attributes:
        directory: of the model.
        precision: type in which new tokens read the weights: ``auto`` (float32), ``float32``, ``bfloat16`` or ``int8``.
    """

    directory: Path
    precision: str = "auto"

    @cached_property
    def model(self) -> XLNetLanguageModel:
        """The language model, in evaluation mode.

        Raises:
            UserError: the directory has no language model, or a tokenizer that does not fit it.
        """
        from xlnet.model.weights import load_language_model

        model = load_language_model(self.directory)
        if not has_tokenizer(self.directory):
            raise UserError(
                f"'{self.directory}' has no tokenizer; put tokenizer.json or spiece.model beside the weights"
            )
        trained_with = tokenizer_digest(self.directory)
        refuse_misfit(self.directory, self.tokenizer, model.config.vocab_size, False, trained_with)
        return model

    @cached_property
    def _weights(self) -> DecoderWeights:
        return DecoderWeights(self.model, "float32" if self.precision == "auto" else self.precision)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return load_tokenizer(self.directory)

    def write(self, request: Request) -> Iterator[Token]:
        """Check a request against the model, then yield each new token as soon as it is chosen.

        Raises:
            UserError: the prompt has no token, or more than the memory holds; the precision cannot be used here.
        """
        weights, sides = self._weights, self.check(request)
        longest = sum(map(len, sides)) + request.tokens
        if request.infill:
            return self._fill(request, sides, Decoder(weights, longest, longest + 1))
        return self._continue(request, sides[0], Decoder(weights, longest, request.memory))

    def check(self, request: Request) -> tuple[list[int], list[int]]:
        """Check a request against the model; return the tokens before and after the new text.

        Raises:
            UserError: the prompt has no token, or more than the memory holds.
        """
        before, after = request.around
        sides = (self.tokenizer.encode_part(before), self.tokenizer.encode_part(after, mid_word=True))
        if not any(sides):
            raise UserError("the prompt has no token of this model's tokenizer; give the model a text to go on from")
        count = sum(map(len, sides)) + (request.tokens if request.infill else 0)
        if count > request.memory:
            with_gap = " with its gap" if request.infill else ""
            raise UserError(
                f"the prompt{with_gap} has {count:,} tokens, and memory holds {request.memory:,}; shorten it or raise "
                "memory"
            )
        return sides

    def _continue(self, request: Request, prompt: list[int], decoder: Decoder) -> Iterator[Token]:
        random, ends = request.sampling.generator(), set() if request.past_end else self.tokenizer.end_ids
        spoken = self.tokenizer.spoken(prompt)
        likeliest = 0 if request.probabilities else request.sampling.likeliest  # a probability depends on all logits
        chosen = continued(
            decoder, prompt, request.tokens, lambda logits_V: request.sampling.choose(logits_V, random), likeliest
        )
        for place, (token, logits_V) in enumerate(chosen):
            yield Token(token, spoken(token), _probability(request, logits_V, token), place)
            if token in ends:
                return

    def _fill(self, request: Request, sides: tuple[list[int], list[int]], decoder: Decoder) -> Iterator[Token]:
        """Fill the gap in the requested order. Each new token sees both sides and the tokens filled before it."""
        random, (before, after) = request.sampling.generator(), sides
        # Special tokens, such as the end of the text, must not stand inside a text.
        spoken, special = self.tokenizer.spoken(before), sorted(self.tokenizer.all_special_ids)
        start = len(before)
        ids: Sequence[int] = before + after
        places: Sequence[int] = [*range(start), *(start + request.tokens + number for number in range(len(after)))]
        for gap in request.order or range(request.tokens):
            logits_V = decoder.predict(ids, places, start + gap).clone()
            logits_V[special] = -float("inf")
            token = request.sampling.choose(logits_V, random)
            yield Token(token, spoken(token) if request.in_order else "", _probability(request, logits_V, token), gap)
            ids, places = [token], [start + gap]

    def text(self, request: Request, tokens: Sequence[Token]) -> str:
        """Return the whole text: the prompt with the new tokens. The tokens decide on the spaces around them."""
        before, after = request.around
        spoken = self.tokenizer.spoken(self.tokenizer.encode_part(before))
        return before + "".join(spoken(token.id) for token in sorted(tokens, key=lambda one: one.place)) + after


def _probability(request: Request, logits_V: Tensor, token: int) -> float | None:
    return probability(logits_V, token) if request.probabilities else None
