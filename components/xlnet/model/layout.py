"""Packed texts: one behind the other in a single row of tokens, with nothing between them.

XLNet's positions are relative, so a text's states do not depend on where in the row it stands, and
attention that stays within each text is exact. Everything but attention works on [T, …] and never
sees padding.

Shapes: S texts, T tokens of all texts together.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xlnet.errors import RunError


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each text of a packed batch lies.

    Attributes:
        lengths_S: tokens per text, on the host, each at least 1.
        offsets_S1: text s holds tokens ``offsets_S1[s]`` to ``offsets_S1[s + 1] - 1``: int32, on the device.
        real_T: False for padding, where texts were padded to one length (see :meth:`padded`); None: there is none.
        first_token: of the batch that this is a part of; its dropout masks are that part of the whole batch's.
        first_text: likewise.
    """

    lengths_S: np.ndarray
    offsets_S1: Tensor
    real_T: Tensor | None = None
    first_token: int = 0
    first_text: int = 0

    @classmethod
    def of(
        cls, lengths_S: np.ndarray, device: torch.device | str = "cpu", first_token: int = 0, first_text: int = 0
    ) -> "Layout":
        """The layout of texts of these lengths, in this order.

        Raises:
            RunError: no text, or an empty one.
        """
        lengths_S = np.asarray(lengths_S, np.int64)
        if not len(lengths_S) or lengths_S.min() < 1:
            raise RunError(f"a batch needs at least one text and no empty one; its lengths are {lengths_S.tolist()}")
        offsets_S1 = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int32))
        return cls(lengths_S, offsets_S1.to(device, non_blocking=True), None, first_token, first_text)

    @classmethod
    def padded(cls, real_T: Tensor, length: int, first_text: int = 0) -> "Layout":
        """The layout of texts that were left-padded to one length, for devices that compile every shape anew.

        Shapes depend on nothing but the arguments': no token count leaves the device. Nothing is computed there
        either, so that a batch can be laid out while another one's program is being collected.
        """
        texts = len(real_T) // length
        offsets_S1 = torch.arange(0, (texts + 1) * length, length, dtype=torch.int32).to(real_T.device)
        return cls(np.full(texts, length), offsets_S1, real_T, first_text * length, first_text)

    @cached_property
    def tokens(self) -> int:
        """T: tokens of all texts together."""
        return int(self.lengths_S.sum())

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths_S.max())

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First token and the one behind the last, per text."""
        ends = np.cumsum(self.lengths_S)
        return list(zip((ends - self.lengths_S).tolist(), ends.tolist(), strict=True))

    @property
    def last_S(self) -> Tensor:
        """Position of each text's last token: int64 [S]."""
        return self.offsets_S1[1:].long() - 1

    def check(self, tokens: int) -> None:
        """Refuse tensors that this layout does not describe.

        Raises:
            RunError: another number of tokens.
        """
        if tokens != self.tokens:
            raise RunError(
                f"{tokens:,} tokens were given, but the packed texts' lengths add up to {self.tokens:,}: "
                "the boundaries are inconsistent"
            )
