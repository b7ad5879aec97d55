"""Gated linear attention.

Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient
Training" (arXiv 2312.06635), with one gate a key channel (GLA) or one a head
("simple GLA"):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

HGRN2 (Qin et al., arXiv 2404.07904) is the former with k = 1 - exp(g), which
the caller computes as -expm1(g).

Time O(T (C + K) V) a head in chunk form, with channel gates O(T (C log C + V)
K); state K V floats.  Weak where many associations must be told apart or
rewritten: writes only add (see the delta rule).  One gate a head forgets all
channels at once; one a channel costs several times as much.
"""

import jax
import jax.numpy as jnp

from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "gated_linear_attention"
_additive.register(_OP)


def gated_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
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
    """Linear attention whose state decays by gates of each token.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      log_decay: [B, T, H] or [B, T, H, K] (a gate a key channel), natural
        logarithm of the decay, <= 0, -inf allowed.
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
    rank = 3 if log_decay is None else jnp.ndim(log_decay)
    if rank not in (3, 4):
        raise ValueError(
            f"{_OP}: log_decay must have shape [B, T, H] or [B, T, H, K], got"
            f" shape {jnp.shape(log_decay)}"
        )
    return _additive.gated(
        _OP,
        q,
        k,
        v,
        log_decay,
        axes="B T H K" if rank == 4 else "B T H",
        scale=scale,
        initial_state=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        state_dtype=state_dtype,
    )
