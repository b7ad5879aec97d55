"""RWKV-6.

Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic
Recurrence" (arXiv 2404.05892):

    o_t = scale (S_{t-1} + (u * k_t) v_t^T)^T r_t
    S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T

Gated linear attention with one gate a key channel, read before the token's own
decay and write, which the bonus u stands for.  Time O(T (C log C + V) K) a head
in chunk form, state K V floats.  Weak where many associations must be told
apart or rewritten: writes only add (see the delta rule).
"""

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "rwkv6"
_additive.register(_OP)


def rwkv6(
    r: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    bonus: jax.Array,
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
    """Linear attention to the past, and to the token itself with a bonus.

    Args:
      r: [B, T, Hk, K] receptance (the query), float16, bfloat16, float32 or
        (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      log_decay: [B, T, H, K], natural logarithm of the decay, <= 0, -inf
        allowed.
      bonus: [H, K], factor of a token's own key.
      scale: factor of r, default K**-0.5.
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
    shapes = _additive.check_heads(
        _OP, r, k, v, initial_state, segment_ids, query="r"
    )
    shapes.bind("log_decay", log_decay, "B T H K")
    shapes.bind("bonus", bonus, "H K")
    dtype = _contract.accumulation_dtype(
        _OP,
        r=r,
        k=k,
        v=v,
        log_decay=log_decay,
        bonus=bonus,
        initial_state=initial_state,
    )
    scale = _additive.check_scale(_OP, scale, shapes["K"])
    r, k, v_read = (recurrence.mask_padding(segment_ids, x) for x in (r, k, v))
    y, state = _additive.additive(
        _OP,
        r,
        k,
        v_read,
        log_decay,
        scale=scale,
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
        read_before=True,
    )
    repeat = shapes["H"] // shapes["Hk"]
    own = r.astype(dtype) * k.astype(dtype)  # [B, T, Hk, K]
    own = jnp.einsum(
        "btgk,grk->btgr",
        own,
        bonus.astype(dtype).reshape(shapes["Hk"], repeat, -1),
        precision=jax.lax.Precision.HIGHEST,
    ).reshape(v.shape[:3])
    y = y + scale * own[..., None] * v_read.astype(dtype)
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    return y.astype(v.dtype), state.astype(state_dtype)
