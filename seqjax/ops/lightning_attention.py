"""Lightning attention.

Qin et al., "Lightning Attention-2" (arXiv 2401.04658): linear attention with a
constant decay a head, no scale and no normaliser (a norm follows in the layer).

    S_t = exp(-slope_h) S_{t-1} + k_t v_t^T     o_t = S_t^T q_t

Time O(T (C + K) V) a head in chunk form, state K V floats.  Weak in that the
rate of forgetting does not depend on the input.  Several tables of slopes are
in public use, most with a factor for the depth of the layer; the operator knows
no depth and defaults to the bare slopes, `layers.Lightning` names its table.
"""

import math

import jax
import numpy as np

from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "lightning_attention"
_additive.register(_OP)


def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8(h+1)/H) for heads h = 0 .. H-1, float64 [H].

    Where H is no power of two, the slopes of the next lower power come first,
    then every second one of the doubled count (Press et al., arXiv 2108.12409).

    Raises:
      ValueError: heads is no int of at least 1.
    """
    if type(heads) is not int or heads < 1:
        raise ValueError(f"heads must be an int of at least 1, got {heads!r}")
    lower = 2 ** math.floor(math.log2(heads))
    slopes = np.exp2(-8.0 * np.arange(1, lower + 1) / lower)
    finer = np.exp2(-8.0 * np.arange(1, 2 * lower + 1, 2) / (2 * lower))
    return np.concatenate([slopes, finer[: heads - lower]])


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    scale: float | None = 1.0,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Linear attention with ALiBi-like constant decays and scale 1.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      log_decay: [H], natural logarithm of the decay, <= 0; default
        `-alibi_slopes(H)`.
      scale: factor of q, default 1; None for K**-0.5.
      initial_state: [B, H, K, V], default zeros.
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
      (y [B, T, H, V] in the dtype of v, state [B, H, K, V]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    return _additive.gated(
        _OP,
        q,
        k,
        v,
        log_decay,
        axes="H",
        default=lambda heads: -alibi_slopes(heads),
        scale=scale,
        initial_state=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        state_dtype=state_dtype,
    )
