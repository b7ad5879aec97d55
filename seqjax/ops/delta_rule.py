"""The delta rule: write what the key does not recall yet.

Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers"
(arXiv 2102.11174); in parallel over time Yang et al. (arXiv 2406.06484); with
a gate a head Gated DeltaNet (arXiv 2412.06464), with a gate a channel Kimi
Delta Attention (arXiv 2510.26692):

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T          o_t = scale S_t^T q_t

Time O(T (C + K) (C + K + V)) a head in chunk form, state K V floats.  Weak in
that every chunk needs a triangular system solved before it can write, two to
three times the work of an additive rule; one rank-one update a token cannot
permute a state (see `gated_delta_product`), and keys longer than 1 make the
state grow.
"""

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _delta

_OP = "delta_rule"
_delta.register(_OP)


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
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
    """DeltaNet, Gated DeltaNet and Kimi Delta Attention.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K], of norm 1: keys are taken as given.
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      beta: [B, T, H], writing strength from 0 to 2; without decay it may be
        [B, T, H, V], one for each value channel.
      log_decay: natural logarithm of the decay, <= 0, -inf allowed: [B, T, H]
        (Gated DeltaNet), [B, T, H, K] (KDA), or None (DeltaNet).
      scale: factor of q, default K**-0.5.
      initial_state: [B, H, K, V], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`;
        with beta [B, T, H, V] a device exchanges [K, K] for each value channel
        and computes K times as much.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64, with channel gates 32; implies
        form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, V] in the dtype of v, state [B, H, K, V]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _delta.check_heads(_OP, q, k, v, initial_state, segment_ids)
    rule = _delta.SCALAR
    if log_decay is None and jnp.ndim(beta) == 4:
        shapes.bind("beta", beta, "B T H V")
        rule = _delta.VALUE
    else:
        shapes.bind("beta", beta, "B T H")
    if log_decay is not None and jnp.ndim(log_decay) == 4:
        shapes.bind("log_decay", log_decay, "B T H K")
        rule = _delta.CHANNEL
    elif log_decay is not None:
        shapes.bind("log_decay", log_decay, "B T H")
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        beta=beta,
        log_decay=log_decay,
        initial_state=initial_state,
    )
    y, state = _delta.run(
        _OP,
        rule,
        dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, read=None),
        scale=_delta.check_scale(_OP, scale, shapes["K"]),
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    return _delta.finish(_OP, y, state, v, state_dtype, dtype)
