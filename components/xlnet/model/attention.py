"""XLNet's relative attention: one mathematics, several implementations.

Source: Yang et al. 2019 (XLNet), sections 2.3 to 2.6; Dai et al. 2019 (Transformer-XL), section 3.3.
The score of query i for key j of the same text is::

    (q_i + r_w) · k_j  +  (q_i + r_r) · r_{i-j}  +  (q_i + r_s) · s_{ij}        (over √H)

with r the projected sinusoids of the distance i - j, and s one of two embeddings: same segment or not.

Shapes: S texts, T tokens of all texts together, N heads, H head width, L tokens of the longest text,
R = 2L distances.
"""

from functools import cache
from types import ModuleType

from torch import Tensor

from xlnet.errors import RunError, UserError, warn
from xlnet.model.dropout import Dropout
from xlnet.model.layout import Layout
from xlnet.model.positions import Positions, Segments

IMPLEMENTATIONS = ("auto", "reference", "sdpa", "padded", "native", "triton")
# The fast ones of a kind of device, the best first; a device that compiles every shape anew takes padded texts.
FAST = {"cuda": ("triton", "sdpa"), "cpu": ("native", "sdpa")}


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
    """Attention output before the output projection.

    Args:
        q_TNH: queries of all texts, one behind the other.
        k_TNH: keys.
        v_TNH: values.
        positions: distances at least as long as the longest text.
        segments: segment of each token; None: the model is used without segments.
        layout: where each text lies; no text sees another.
        dropout: which attention weights to drop; None: none.
        impl: one of :data:`IMPLEMENTATIONS`; ``auto`` takes the fastest that runs here, and
            warns once where that is a slow one.

    Returns:
        [T, N, H], in the type of ``q_TNH``.

    Raises:
        UserError: an unknown implementation, or one that cannot run here, with the reason.
        RunError: shapes, types or boundaries that do not fit together.
    """
    _check(q_TNH, k_TNH, v_TNH, positions, segments, layout)
    if layout.real_T is not None and impl == "auto":
        impl = "padded"
    if (impl == "padded") != (layout.real_T is not None):
        given, taken = ("padded", "packed") if layout.real_T is not None else ("packed", "padded")
        raise UserError(f"attention implementation {impl!r} takes {taken} texts, not {given} ones; take 'auto'")
    name = implementation(impl, q_TNH.device.type, str(q_TNH.dtype), q_TNH.shape[-1])
    return _module(name).attention(q_TNH, k_TNH, v_TNH, positions, segments, layout, dropout)


def implementation(impl: str, device: str, dtype: str, head_width: int) -> str:
    """The name of the implementation that is used: the one asked for, or for ``auto`` the fastest that runs here.

    Raises:
        UserError: an unknown name, or one that cannot run here, with the reason.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"attention implementation is {impl!r}; allowed: {', '.join(IMPLEMENTATIONS)}")
    if impl == "auto":
        return _best(device, dtype, head_width)
    if reason := _obstacle(impl, device, dtype, head_width):
        raise UserError(f"attention implementation {impl!r} cannot run here: {reason}; take 'auto'")
    return impl


@cache
def _best(device: str, dtype: str, head_width: int) -> str:
    """The first of the fast ones that can run; a slower one is a warning, once."""
    obstacles = []
    for impl in FAST.get(device, ("padded",)):
        if not (reason := _obstacle(impl, device, dtype, head_width)):
            break
        obstacles.append(f"{impl}: {reason}")
    if obstacles:
        warn(f"attention on {device} is the slower '{impl}'; {'; '.join(obstacles)}")
    return impl


@cache
def _obstacle(impl: str, device: str, dtype: str, head_width: int) -> str:
    """Why an implementation cannot run here; empty if it can."""
    return _module(impl).obstacle(device, dtype, head_width)


def _module(impl: str) -> ModuleType:
    from xlnet.model.kernels import native, padded, reference, sdpa, triton

    return {"native": native, "padded": padded, "reference": reference, "sdpa": sdpa, "triton": triton}[impl]


def _check(
    q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, positions: Positions, segments: Segments | None, layout: Layout
) -> None:
    if not q_TNH.shape == k_TNH.shape == v_TNH.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_TNH, k_TNH, v_TNH))
        raise RunError(f"queries, keys and values differ in shape: {shapes}")
    types = {x.dtype for x in (q_TNH, k_TNH, v_TNH, positions.r_RNH)}
    if len(types) > 1:
        raise RunError(f"queries, keys, values and positions differ in type: {', '.join(sorted(map(str, types)))}")
    layout.check(len(q_TNH))
    if layout.longest > len(positions.r_RNH) // 2:
        raise RunError(
            f"a text of {layout.longest:,} tokens is longer than the position table, which reaches "
            f"{len(positions.r_RNH) // 2:,}"
        )
    if segments is not None:
        layout.check(len(segments.ids_T))
