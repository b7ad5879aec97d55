"""Gated DeltaNet 2: the delta rule with strengths of its own for each channel.

The update of the GDN-2 operator in flash-linear-attention (`gdn2`), whose
erasing strength b and writing strength w differ from channel to channel:

    S' = diag(exp(g_t)) S_{t-1}
    S_t = S' + k_t (w_t * v_t - S'^T (b_t * k_t))^T     o_t = scale S_t^T q_t

Time O(T (C log C + K) (C + K + V)) a head in chunk form, state K V floats.
Weak where b turns b * k far from k: then the transition need not shrink.
"""

import jax

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _delta

_OP = "gated_delta_rule_2"
_delta.register(_OP)


def gated_delta_rule_2(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    b: jax.Array,
    w: jax.Array,
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
    """Erases with b * k and writes w * v, every channel in its own measure.

    Args:
      q: [B, T, H, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, H, K], of norm 1.
      v: [B, T, H, V].
      b: [B, T, H, K], erasing strength, from 0 to 1.
      w: [B, T, H, V], writing strength.
      log_decay: [B, T, H, K], natural logarithm of the decay, <= 0, -inf
        allowed.
      scale: factor of q, default K**-0.5.
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
    inputs = dict(q=q, k=k, v=v, b=b, w=w, log_decay=log_decay)
    shapes = _contract.Shapes(_OP)
    for name, x in inputs.items():
        shapes.bind(name, x, "B T H V" if name in "vw" else "B T H K")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B H K V")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP, **inputs, initial_state=initial_state
    )
    # Masked before they are multiplied, so that nothing at padding can reach
    # a gradient.
    wide = {
        n: recurrence.mask_padding(segment_ids, x).astype(dtype)
        for n, x in inputs.items()
    }
    y, state = _delta.run(
        _OP,
        _delta.CHANNEL,
        dict(
            q=wide["q"],
            k=wide["k"],
            v=wide["w"] * wide["v"],
            beta=None,
            log_decay=wide["log_decay"],
            read=wide["b"] * wide["k"],
        ),
        scale=_delta.check_scale(_OP, scale, shapes["K"]),
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    return _delta.finish(_OP, y, state, v, state_dtype, dtype)
