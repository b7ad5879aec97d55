"""Chunk form of softmax attention: online softmax over blocks of keys.

The sweep (`_softmax_sweep`) over one set of keys, those of the cache and the
new ones, with the derivative written by hand.  Time O(T^2 (K + V)) or
O(T w (K + V)) with a window of w; memory for the backward pass: inputs, output
and the logarithm of each query's denominator.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _softmax_blocks
from seqjax.ops import _softmax_sweep


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable)."""

    block: int  # C, tokens a block of queries and of keys
    cached: int  # leading keys that come from the cache, a multiple of C
    scale: float
    dtype: jnp.dtype  # accumulation
    precision: jax.lax.Precision


class Gate(NamedTuple):
    """Forget gate in the chunk form.

    Attributes:
      log: [B, T, H], finite; only its cotangent is used.
      cached: [B, plan.cached, H], decay from each cached key to the end of the
        cache, finite; only its cotangent is used.
      query: pair (high, low) of cumulative sums at the queries, [B, T, H].
      key: the same at the keys, [B, L, H]; the decay of a pair is
        query_i - key_j.
    """

    log: jax.Array
    cached: jax.Array
    query: tuple[jax.Array | None, ...]
    key: tuple[jax.Array | None, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk_attention(plan: Plan, q, k, v, sink, gate, bands):
    """Softmax attention [B, T, H, V] in the accumulation dtype.

    Args:
      plan: static choices.
      q: [B, T, H, K].
      k: [B, L, Hk, K], plan.cached cached keys and then the T new ones.
      v: [B, L, Hk, V].
      sink: [H] or None.
      gate: `Gate` or None.
      bands: `_softmax_bands.Bands`: which keys each query sees.

    Returns:
      y; differentiable once, in reverse mode.
    """
    return _forward(plan, q, k, v, sink, gate, bands)[0]


def _forward(plan, q, k, v, sink, gate, bands):
    rows, keys = _split(plan, q, k, v, gate, bands)
    batch, length, heads, _ = q.shape
    like = (q, k, v, sink, gate, bands)
    carry = _softmax_sweep.start(
        plan, sink, rows.q.shape[1:-1], v.shape[-1], like
    )
    carry = _softmax_sweep.forward(plan, rows, keys, carry, shared=True)
    out, lse = _softmax_sweep.finish(carry)
    y = _softmax_blocks.unblock(out, batch, length, heads)
    return y, (q, k, v, sink, gate, bands, y, lse)


def _backward(plan, residual, y_bar):
    q, k, v, sink, gate, bands, y, lse = residual
    rows, keys = _split(plan, q, k, v, gate, bands)
    batch, length, heads, _ = q.shape
    outer = outer_of(plan, k.shape[2], y_bar, y, lse)
    bars = _softmax_sweep.backward(
        plan,
        rows,
        outer,
        keys,
        diagonal=plan.cached // plan.block,
        sink=sink is not None,
    )
    q_bar = plan.scale * _softmax_blocks.unblock(bars.q, batch, length, heads)
    k_bar = _softmax_blocks.unblock_keys(bars.k, batch, k.shape[1])
    v_bar = _softmax_blocks.unblock_keys(bars.v, batch, k.shape[1])
    sink_bar = gate_bar = None
    if sink is not None:
        sink_bar = _softmax_sweep.sink_bar(plan, sink, outer)
    if gate is not None:
        log_bar, cached_bar = (
            _softmax_blocks.unblock_gates(x, batch, k.shape[1])
            for x in (bars.gate, bars.columns)
        )
        gate_bar = Gate(
            log_bar[:, plan.cached :],
            cached_bar[:, : plan.cached],
            (None, None),
            (None, None),
        )
    return (
        q_bar.astype(q.dtype),
        k_bar.astype(k.dtype),
        v_bar.astype(v.dtype),
        sink_bar,
        gate_bar,
        None,
    )


chunk_attention.defvjp(_forward, _backward)


def outer_of(plan, groups: int, y_bar, y, lse) -> _softmax_sweep.Outer:
    """What the backward pass knows of the queries, [B, T, H, V] in blocks."""
    inner = jnp.sum(y_bar * y, axis=-1, keepdims=True)  # dO . O
    return _softmax_sweep.Outer(
        _softmax_blocks.block(plan, y_bar, groups),
        _softmax_blocks.block(plan, inner, groups)[..., 0],
        lse,
    )


def _split(plan, q, k, v, gate, bands):
    query = key = None
    if gate is not None:
        query, key = gate.query, gate.key
    return (
        _softmax_blocks.rows_of(
            plan, k.shape[2], q, bands.first, bands.last, query
        ),
        _softmax_blocks.keys_of(plan, k, v, bands.rank, key),
    )
