"""State space duality: the recurrence of Mamba-2.

Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060):

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T  y_t = h_t C_t + D x_t

It is gated linear attention with q = C, k = B, v = dt x and log decay dt A.
Time O(T (C + N) P) a head in chunk form, state P N floats.  Weak like every
additive rule at rewriting what a key stores.
"""

import jax

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "ssd"
_additive.register(_OP)


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Selective state space with one decay a head (Mamba-2).

    Args:
      x: [B, T, H, P] float16, bfloat16, float32 or (all inputs) float64.
      dt: [B, T, H], step sizes > 0, already activated.
      A: [H], < 0.
      B: [B, T, G, N]; H a multiple of G, head j uses group j // (H / G).
      C: [B, T, G, N].
      D: [H], skip connection, default none.
      initial_state: [B, H, P, N], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "triton" (chunk on NVIDIA GPUs; K and V up to 256, no
        float64), "xla", a list of names, or None for the first that can run.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, P] in the dtype of x, state [B, H, P, N]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    shapes.bind("x", x, "B T H P")
    shapes.bind("dt", dt, "B T H")
    shapes.bind("A", A, "H")
    shapes.bind("B", B, "B T G N")
    shapes.bind("C", C, "B T G N")
    shapes.divides("G", "H", "heads or groups")
    if D is not None:
        shapes.bind("D", D, "H")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B H P N")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP, x=x, dt=dt, A=A, B=B, C=C, D=D, initial_state=initial_state
    )
    # Masked before they are multiplied, so that nothing at padding can reach
    # a gradient.
    wide_x = recurrence.mask_padding(segment_ids, x).astype(dtype)
    wide_dt = recurrence.mask_padding(segment_ids, dt).astype(dtype)
    y, state = _additive.additive(
        _OP,
        C,
        B,
        wide_dt[..., None] * wide_x,
        wide_dt * A.astype(dtype)[None, None],
        scale=1.0,
        initial=None if initial_state is None else initial_state.mT,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    if D is not None:
        y = y + D.astype(dtype)[None, None, :, None] * wide_x
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    return y.astype(x.dtype), state.mT.astype(state_dtype)
