"""The delta rule with a transition that is diagonal plus low rank (RWKV-7).

Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution" (arXiv
2503.14456):

    S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T
    o_t = scale S_t^T q_t

Time O(T (C log C + K) (C + K + V)) a head in chunk form, state K V floats.
Weak in its freedom: nothing bounds the transition unless the layer does (RWKV-7
takes a = -kk, b = kk * rate with kk of norm 1 and rate in [0, 1]), and it costs
twice the scores of `delta_rule` with channel gates.
"""

import jax

from seqjax.ops import _contract
from seqjax.ops import _delta

_OP = "dplr_delta_rule"
_delta.register(_OP)


def dplr_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    log_decay: jax.Array,
    *,
    scale: float = 1.0,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """A state that decays by channel, erases along a, b and writes k v^T.

    Args:
      q: [B, T, H, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, H, K].
      v: [B, T, H, V].
      a: [B, T, H, K], what the state is read with, before its decay.
      b: [B, T, H, K], where what was read is added.
      log_decay: [B, T, H, K], natural logarithm of the decay, <= 0, -inf
        allowed.
      scale: factor of q.
      initial_state: [B, H, K, V], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 32; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, V] in the dtype of v, state [B, H, K, V]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    inputs = dict(q=q, k=k, v=v, a=a, b=b, log_decay=log_decay)
    shapes = _contract.Shapes(_OP)
    for name, x in inputs.items():
        shapes.bind(name, x, "B T H V" if name == "v" else "B T H K")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B H K V")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP, **inputs, initial_state=initial_state
    )
    y, state = _delta.run(
        _OP,
        _delta.DPLR,
        inputs,
        scale=_delta.check_scale(_OP, scale, shapes["K"]),
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    return _delta.finish(_OP, y, state, v, state_dtype, dtype)
