"""Comba: a delta rule that reads with a key of its own.

Hu et al., "Comba: Improving Bilinear RNNs with Closed-loop Control" (arXiv
2506.02475):

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T p_t))^T
    o_t = scale S_t^T q_t

The inner read takes the state before its decay, and p is usually k scaled by a
learnt factor below 1.  Time O(T (C + K) (C + K + V)) a head in chunk form,
state K V floats.  Weak where p and k are free of each other: then the state may
grow, for the transition exp(g) - beta k p^T need not shrink.
"""

import jax

from seqjax.ops import _contract
from seqjax.ops import _delta

_OP = "comba"
_delta.register(_OP)


def comba(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    p: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    *,
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
    """The delta rule with a separate key to read with, before the decay.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K], of norm 1.
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      p: [B, T, Hk, K], key of the inner read, of norm 1 at most.
      beta: [B, T, H], writing strength.
      log_decay: [B, T, H], natural logarithm of the decay, <= 0, -inf allowed.
      scale: factor of q, default K**-0.5.
      initial_state: [B, H, K, V], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, V] in the dtype of v, state [B, H, K, V]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _delta.check_heads(_OP, q, k, v, initial_state, segment_ids)
    shapes.bind("p", p, "B T Hk K")
    shapes.bind("beta", beta, "B T H")
    shapes.bind("log_decay", log_decay, "B T H")
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        p=p,
        beta=beta,
        log_decay=log_decay,
        initial_state=initial_state,
    )
    y, state = _delta.run(
        _OP,
        _delta.READ_FIRST,
        dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, read=p),
        scale=_delta.check_scale(_OP, scale, shapes["K"]),
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    return _delta.finish(_OP, y, state, v, state_dtype, dtype)
