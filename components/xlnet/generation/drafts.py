"""Continues a text by several tokens a pass where it repeats itself: speculative decoding (Leviathan et al. 2023).

If the text's last tokens have occurred before, what followed them then is a guess of what follows now (prompt lookup
decoding, Saxena 2023). One pass of the network checks several guesses, and reads weights, keys and values only once.
The network chooses each token from the same logits as without guesses, so the text is the same.

Shapes: V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from xlnet.generation.decoder import Decoder

RECENT = 2  # tokens that each pass reads again, as in transformers: so the second to last token sees the last
MATCH = 3  # tokens that must have occurred before


def continued(
    decoder: Decoder, prompt: Sequence[int], tokens: int, choose: Callable[[Tensor], int], likeliest: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield each new token with its logits, [V]. Tokens of one pass come at once.

    Args:
        decoder: of an empty text.
        prompt: the tokens to continue.
        tokens: how many new tokens.
        choose: chooses a token from its logits. It is called once for each new token, in order.
        likeliest: see :meth:`Decoder.follow`.
    """
    text, guesses, last, unread = list(prompt), Guesses(prompt), len(prompt) + tokens, len(prompt)
    while len(text) < last:
        most = min(decoder.most_drafts, last - len(text) - 1) if unread <= RECENT else 0
        drafts = guesses.drafts(most)
        start = len(text) - unread
        logits_GV = decoder.follow(text[start:], start, drafts, likeliest)
        for logits_V, draft in zip(logits_GV, (*drafts, None), strict=True):
            token = choose(logits_V)
            text.append(token)
            guesses.append(token)
            yield token, logits_V
            if token != draft:
                break
        unread = min(RECENT, len(text))


class Guesses:
    """Guesses each next token of a text, and counts how many in a row were right."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # the place after the last occurrence of these tokens
        self._source: int | None = None  # the place that is guessed to repeat itself next
        self._right = 0
        for token in text:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the text."""
        if self._source is not None and self._text[self._source] == token:
            self._right += 1
            self._source += 1
        else:
            self._right, self._source = 0, None
        self._text.append(token)
        match = tuple(self._text[-MATCH:])
        if self._source is None:
            self._source = self._next.get(match)
        self._next[match] = len(self._text)

    def drafts(self, most: int) -> list[int]:
        """Return guesses of the next tokens: one fewer than the last guesses that were right, and at most so many."""
        if self._source is None:
            return []
        period = len(self._text) - self._source
        return [self._text[self._source + number % period] for number in range(min(most, self._right - 1))]
