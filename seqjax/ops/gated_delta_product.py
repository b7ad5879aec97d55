"""Gated DeltaProduct: several delta steps a token.

Siems et al., "DeltaProduct: Improving State-Tracking in Linear RNNs via
Householder Products" (arXiv 2502.10297).  A token decays the state once, takes
n delta steps, and reads:

    S <- exp(g_t) S;   n times: S <- S + k (beta (v - S^T k))^T
    o_t = scale S_t^T q_t

A product of n Householder matrices is a rotation or a permutation of n + 1
keys, which one delta step cannot be.  Time and memory are those of the delta
rule on n T tokens, but only T of them are read.  Weak in just that: n times the
work and the projections of `delta_rule`.
"""

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _delta

_OP = "gated_delta_product"
_delta.register(_OP)


def gated_delta_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    num_householder: int,
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
    """The delta rule with n = `num_householder` steps a token.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T n, Hk, K], of norm 1; token t owns rows t n .. t n + n - 1.
      v: [B, T n, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      beta: [B, T n, H], writing strength from 0 to 2.
      log_decay: [B, T, H], natural logarithm of the decay before the first of
        a token's steps, <= 0, -inf allowed; or None for no decay.
      num_householder: n, at least 1.
      scale: factor of q, default K**-0.5.
      initial_state: [B, H, K, V], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64 // n; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, V] in the dtype of v, state [B, H, K, V]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    n = num_householder
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(
            f"{_OP}: num_householder must be an int of at least 1, got {n!r}"
        )
    shapes = _contract.Shapes(_OP)
    shapes.bind("q", q, "B T Hk K")
    rows = str(n * shapes["T"])
    shapes.bind("k", k, f"B {rows} Hk K")
    shapes.bind("v", v, f"B {rows} H V")
    shapes.divides("Hk", "H", "heads")
    shapes.bind("beta", beta, f"B {rows} H")
    if log_decay is not None:
        shapes.bind("log_decay", log_decay, "B T H")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B H K V")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        beta=beta,
        log_decay=log_decay,
        initial_state=initial_state,
    )
    if log_decay is not None:
        later = jnp.zeros((*log_decay.shape[:2], n - 1, shapes["H"]), dtype)
        first = log_decay.astype(dtype)[:, :, None]
        log_decay = jnp.concatenate([first, later], axis=2)
        log_decay = log_decay.reshape(beta.shape)
    y, state = _delta.run(
        _OP,
        _delta.SCALAR,
        dict(q=q, k=k, v=v, beta=beta, log_decay=log_decay, read=None),
        steps=n,
        scale=_delta.check_scale(_OP, scale, shapes["K"]),
        initial=initial_state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    return _delta.finish(_OP, y, state, v, state_dtype, dtype)
