"""Retention.

Sun et al., "Retentive Network" (arXiv 2307.08621): linear attention with one
constant decay a head.

    S_t = gamma_h S_{t-1} + k_t v_t^T           o_t = scale S_t^T q_t

with gamma_h = 1 - 2^(-5-h) unless told otherwise.  Time O(T (C + K) V) a head
in chunk form, state K V floats.  Weak in that the rate of forgetting does not
depend on the input.
"""

import jax
import numpy as np

from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "retention"
_additive.register(_OP)


def retention_log_decay(heads: int) -> np.ndarray:
    """log(1 - 2^(-5-h)) for heads h = 0 .. H-1, float64 [H]."""
    return np.log1p(-np.exp2(-5.0 - np.arange(heads)))


def retention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Linear attention with a constant decay for every head.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      log_decay: [H], natural logarithm of the decay, <= 0; default
        `retention_log_decay(H)`.
      scale: factor of q, default K**-0.5.
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
        default=retention_log_decay,
        scale=scale,
        initial_state=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        state_dtype=state_dtype,
    )
