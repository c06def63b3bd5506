"""Computes how likely texts are under a language model, from left to right or in any other order.

Shapes: B windows of L tokens, P predicted places.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from xlnet.errors import UserError
from xlnet.model.language_model import Text, XLNetLanguageModel
from xlnet.model.token_loss import token_losses
from xlnet.model.visibility import NEVER

BATCH_TOKENS = 4096
Window = tuple[int, np.ndarray, int]  # the text's number, tokens, and the first place to predict


def left_to_right(model: XLNetLanguageModel, texts: Sequence[np.ndarray], length: int, start_id: int) -> np.ndarray:
    """Return each text's negative log-likelihood in nats: float64 [texts].

    Each token is predicted from the tokens before it: at least half a window of them, or all if there are fewer.

    Args:
        model: in evaluation mode.
        texts: token ids of each text, at least one.
        length: maximum number of tokens in a window, at least 2.
        start_id: the token that stands before each text, such as the end of a document.
    """
    losses = np.zeros(len(texts))
    windows = [window for number, text in enumerate(texts) for window in _windows(number, text, length, start_id)]
    for batch in _batches(sorted(windows, key=lambda window: len(window[1]))):
        numbers = np.array([number for number, _, _ in batch])
        np.add.at(losses, numbers, _losses(model, batch))
    return losses


@torch.inference_mode()
def in_orders(model: XLNetLanguageModel, text: Sequence[int], orders: Sequence[Sequence[int]]) -> np.ndarray:
    """Return a text's negative log-likelihood in nats under each of some factorisation orders: float64 [orders].

    Args:
        model: in evaluation mode.
        text: the token ids of L tokens.
        orders: each token's place in the order: permutations of 0 to L - 1.

    Raises:
        UserError: an order is not a permutation.
    """
    for order in orders:
        if sorted(order) != list(range(len(text))):
            raise UserError(
                f"the factorisation order {list(order)[:20]} is not a permutation of 0 to {len(text) - 1}; name each "
                "token's place once"
            )
    device = model.lm_loss.bias.device
    ids_BL = torch.tensor([list(text)] * len(orders), device=device)
    order_BL = torch.tensor([list(order) for order in orders], dtype=torch.int32, device=device)
    given = Text(ids_BL, torch.zeros_like(order_BL), order_BL, torch.arange(len(text), device=device).expand_as(ids_BL))
    hidden_BPD, _ = model(given)
    table, bias = model.transformer.word_embedding.weight, model.lm_loss.bias
    found = token_losses(hidden_BPD.flatten(0, 1), table, bias, ids_BL.flatten()).view_as(ids_BL)
    return np.asarray(found.double().sum(1).cpu().numpy())


def _windows(number: int, text: np.ndarray, length: int, start_id: int) -> Iterator[Window]:
    """Cut a text into windows that overlap by half; each token is predicted once."""
    tokens = np.concatenate([[start_id], text])
    yield number, tokens[:length], 1
    overlap, done = max(1, length // 2), min(length, len(tokens))
    while done < len(tokens):
        end = min(done + length - overlap, len(tokens))
        yield number, tokens[done - overlap : end], overlap
        done = end


def _batches(windows: list[Window]) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window[1]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@torch.inference_mode()
def _losses(model: XLNetLanguageModel, batch: list[Window]) -> np.ndarray:
    device, longest = model.lm_loss.bias.device, max(len(tokens) for _, tokens, _ in batch)
    most = max(len(tokens) - first for _, tokens, first in batch)
    ids, order = np.zeros((len(batch), longest), np.int64), np.full((len(batch), longest), NEVER, np.int32)
    place, weights = np.zeros((len(batch), most), np.int64), np.zeros((len(batch), most))
    for row, (_, tokens, first) in enumerate(batch):
        ids[row, : len(tokens)], order[row, : len(tokens)] = tokens, np.arange(len(tokens))
        place[row, : len(tokens) - first] = np.arange(first, len(tokens))
        weights[row, : len(tokens) - first] = 1
    ids_BL, order_BL, place_BP = (torch.from_numpy(array).to(device) for array in (ids, order, place))
    text = Text(ids_BL, torch.zeros_like(order_BL), order_BL, place_BP)
    hidden_BPD, _ = model(text)
    table, bias = model.transformer.word_embedding.weight, model.lm_loss.bias
    found = token_losses(hidden_BPD.flatten(0, 1), table, bias, text.targets_BP.flatten()).view_as(place_BP)
    return (found.double().cpu().numpy() * weights).sum(1)
