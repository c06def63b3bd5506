"""Two-stream attention over a factorisation order, with memory: one formula, several implementations.

Source: Yang et al. 2019 (XLNet), sections 2.2 to 2.4. A text's content stream knows each token; its query stream
knows only the token's place, and predicts the token. Both attend to the same keys: the memory of earlier segments,
then the content.
The score of a query and a key is that of :mod:`xlnet.model.attention`. Two integers decide which keys a query sees:
query i sees key j if ``order[j] <= sees[i]``. So no [L, L] mask is stored.

Shapes: B texts of L content tokens and P predicted positions, Q = L + P queries, M memory tokens, K = M + L keys,
R = L + K distances, N heads, H head width.
"""

from types import ModuleType

from torch import Tensor

from xlnet.errors import RunError
from xlnet.model.choice import Choice
from xlnet.model.dropout import Dropout
from xlnet.model.inputs import TwoStreamInputs
from xlnet.model.kernels import streams_dense, streams_native, streams_reference, streams_triton
from xlnet.model.positions import Positions
from xlnet.model.visibility import StreamSegments, Visibility

MODULES: dict[str, ModuleType] = {
    "reference": streams_reference,
    "dense": streams_dense,
    "native": streams_native,
    "triton": streams_triton,
}
FAST = {"cuda": ("triton", "dense"), "cpu": ("native", "dense")}
CHOICE = Choice("two-stream attention", tuple(MODULES), MODULES.__getitem__, FAST, anywhere="dense")


def stream_attention(
    q_BQNH: Tensor,
    k_BKNH: Tensor,
    v_BKNH: Tensor,
    positions: Positions,
    segments: StreamSegments | None,
    visibility: Visibility,
    dropout: Dropout | None = None,
    impl: str = "auto",
) -> Tensor:
    """Compute the output of both streams' attention before the output projection.

    Args:
        q_BQNH: queries: the content's, then the predicted positions'.
        k_BKNH: keys: the memory's, then the content's.
        v_BKNH: values.
        positions: encodings of the distances from K down to 1 - L: [R, N, H].
        segments: None if the model is used without segments.
        visibility: what each query sees; a query that sees no key gets zeros.
        dropout: which attention weights to drop; its row is query and head, its column is the key.
        impl: one of :data:`MODULES`; ``auto`` takes the fastest that runs here, and warns once if that is a slow one.

    Returns:
        The output, [B, Q, N, H].

    Raises:
        UserError: the implementation is unknown or cannot run here.
        RunError: shapes do not match.
    """
    given = TwoStreamInputs(q_BQNH, k_BKNH, v_BKNH, positions, segments, visibility, dropout)
    _check(given)
    name = CHOICE.name(impl, q_BQNH.device.type, str(q_BQNH.dtype), q_BQNH.shape[-1])
    return MODULES[name].attention(given)


def _check(given: TwoStreamInputs) -> None:
    q_BQNH, k_BKNH, v_BKNH, positions, _, visibility, _ = given
    if k_BKNH.shape != v_BKNH.shape or q_BQNH.shape[2:] != k_BKNH.shape[2:] or len(q_BQNH) != len(k_BKNH):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BQNH, k_BKNH, v_BKNH))
        raise RunError(f"queries, keys and values do not match: {shapes}")
    if visibility.place_BQ.shape != q_BQNH.shape[:2] or visibility.order_BK.shape != k_BKNH.shape[:2]:
        described = tuple(visibility.place_BQ.shape), tuple(visibility.order_BK.shape)
        there = tuple(q_BQNH.shape[:2]), tuple(k_BKNH.shape[:2])
        raise RunError(f"the visibility describes queries and keys of {described}; there are {there}")
    distances = visibility.length + k_BKNH.shape[1]
    if len(positions.r_RNH) != distances:
        raise RunError(f"there are {len(positions.r_RNH):,} distances; {distances:,} are needed")
