"""XLNet's relative attention: one formula, several implementations.

Source: Yang et al. 2019 (XLNet), sections 2.3 to 2.6; Dai et al. 2019 (Transformer-XL), section 3.3.
The score of query i and key j of the same text is::

    (q_i + r_w) · k_j  +  (q_i + r_r) · r_{i-j}  +  (q_i + r_s) · s_{ij}        (over √H)

Here r is the projected sinusoidal encoding of the distance i - j, and s is one of two embeddings, for "same segment"
and "another segment".

Shapes: S texts, T tokens of all texts together, N heads, H head width, L tokens of the longest text,
R = 2L distances.
"""

from types import ModuleType

from torch import Tensor

from xlnet.errors import RunError, UserError
from xlnet.model.choice import Choice
from xlnet.model.dropout import Dropout
from xlnet.model.inputs import AttentionInputs
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "padded", "native", "triton")


def relative_attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    positions: Positions,
    segments: Segments | None,
    layout: Layout,
    dropout: Dropout | None = None,
    impl: str = "auto",
) -> Tensor:
    """Compute the attention output before the output projection.

    Args:
        q_TNH: queries of all texts, concatenated; or of each text's last token, [S, N, H], if
            :func:`takes_last_queries`.
        k_TNH: keys.
        v_TNH: values.
        positions: encodings for distances at least as long as the longest text.
        segments: segment of each token; None if the model is used without segments.
        layout: where each text is; no text attends to another.
        dropout: which attention weights to drop; None drops nothing.
        impl: one of :data:`IMPLEMENTATIONS`; ``auto`` takes the fastest that runs here, and
            warns once if that is a slow one.

    Returns:
        The output, one row per query, in the type of ``q_TNH``.

    Raises:
        UserError: the implementation is unknown, or cannot run here; the message gives the reason.
        RunError: shapes, types or text boundaries do not match.
    """
    given = AttentionInputs(q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout)
    _check(given)
    if layout.real_T is not None and impl == "auto":
        impl = "padded"
    if (impl == "padded") != (layout.real_T is not None):
        packing, taken = ("padded", "packed") if layout.real_T is not None else ("packed", "padded")
        raise UserError(f"attention implementation {impl!r} takes {taken} texts, not {packing} ones; take 'auto'")
    name = implementation(impl, q_TNH.device.type, str(q_TNH.dtype), q_TNH.shape[-1])
    return _module(name).attention(given)


def implementation(impl: str, device: str, dtype: str, head_width: int) -> str:
    """Return the name of the implementation to use: ``impl``, or for ``auto`` the fastest that runs here.

    Raises:
        UserError: the name is unknown, or the implementation cannot run here; the message gives the reason.
    """
    return CHOICE.name(impl, device, dtype, head_width)


def takes_last_queries(impl: str, x_TD: Tensor, head_width: int, layout: Layout) -> bool:
    """Whether the attention of these hidden states can be asked for each text's last token only."""
    if x_TD.device.type != "cpu" or layout.real_T is not None:
        return False
    return implementation(impl, "cpu", str(x_TD.dtype), head_width) == "native"


def _module(impl: str) -> ModuleType:
    from xlnet.model.kernels import native, padded, reference, sdpa, triton

    return {"native": native, "padded": padded, "reference": reference, "sdpa": sdpa, "triton": triton}[impl]


# A device that compiles every new shape takes padded texts.
FAST = {"cuda": ("triton", "sdpa"), "cpu": ("native", "sdpa")}
CHOICE = Choice("attention", IMPLEMENTATIONS[1:], _module, FAST, anywhere="padded")


def _check(given: AttentionInputs) -> None:
    q_TNH, k_TNH, v_TNH, positions, segments, layout, _ = given
    last_S = (layout.texts, *k_TNH.shape[1:])
    if k_TNH.shape != v_TNH.shape or q_TNH.shape not in (k_TNH.shape, last_S):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_TNH, k_TNH, v_TNH))
        raise RunError(f"queries, keys and values differ in shape: {shapes}")
    types = {x.dtype for x in (q_TNH, k_TNH, v_TNH, positions.r_RNH)}
    if len(types) > 1:
        raise RunError(f"queries, keys, values and positions differ in type: {', '.join(sorted(map(str, types)))}")
    layout.check(len(k_TNH))
    if layout.longest > len(positions.r_RNH) // 2:
        raise RunError(
            f"a text of {layout.longest:,} tokens is longer than the position table, which reaches "
            f"{len(positions.r_RNH) // 2:,}"
        )
    if segments is not None:
        layout.check(len(segments.ids_T))
