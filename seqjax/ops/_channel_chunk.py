"""Chunk form of the additive rule with one gate a key channel.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

In a chunk of C tokens, incoming state S, scores A and decayed Q, K of
`_channel_pairs`:

    O   = scale [ (Q * head) S + A V ]
    S'  = decay S + (K * tail)^T V

A `lax.scan` walks over groups of chunks, as in `_scalar_chunk`.  Time
O(T (C log C + V) K), memory for the backward pass: the inputs, and one state a
chunk (K V / C floats a token and head).  The backward pass recomputes scores
and decays of one group at a time.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _channel_pairs
from seqjax.ops import _chunk_layout as layout
from seqjax.ops import _contract


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable)."""

    chunk_size: int
    group: int  # chunks a scan step works on
    scale: float
    dtype: jnp.dtype  # accumulation
    precision: jax.lax.Precision


# Gates a scan step should work on: 2**17 was the fastest of 2**16 .. 2**18 on
# two cores, T = 2048 and H = 4, K = V = 64 and 128, chunks of 32 and 64.  A
# step holds some twenty times as many numbers, and they should stay in cache.
_GATES = 2**17


def make_plan(q, v, *, chunk_size: int, scale: float, dtype, precision) -> Plan:
    """Chooses the group of chunks for shapes q [B,T,G,K], v [B,T,H,V]."""
    batch, length, heads, _ = v.shape
    chunk_size = min(chunk_size, _contract.round_up(max(length, 1), 16))
    chunks = math.ceil(length / chunk_size)
    chunk_gates = batch * heads * chunk_size * q.shape[-1]
    target = max(1, _GATES // max(1, chunk_gates))
    steps = math.ceil(chunks / target)
    return Plan(
        chunk_size, math.ceil(chunks / steps), float(scale), dtype, precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def channel_chunk(plan: Plan, q, k, v, log_decay, starts, initial):
    """Output [B,T,H,V] and final state [B,H,K,V] of the additive rule.

    Args:
      plan: static choices.
      q: [B, T, G, K]; value head h reads key head h // (H/G).
      k: [B, T, G, K].
      v: [B, T, H, V].
      log_decay: [B, T, H, K] in the accumulation dtype.
      starts: bool [B, T], where a document starts, or None.
      initial: [B, H, K, V] in the accumulation dtype.

    Returns:
      (y, state), both in the accumulation dtype.
    """
    return _forward(plan, q, k, v, log_decay, starts, initial)[0]


def _forward(plan, q, k, v, log_decay, starts, initial):
    inputs = _split(plan, q, k, v, log_decay, starts)

    def step(state, group):
        q, k, v, log = _load(plan, group)
        scores, q_head, k_tail = _inside(plan, q, k, log)
        write = _mm(plan, "...jk,...jv->...kv", k_tail, v)
        before, after = recurrence.exclusive_prefix(
            recurrence.Affine(_total(log), write), state
        )
        y = _mm(plan, "...ij,...jv->...iv", scores, v)
        y += _mm(plan, "...ik,...kv->...iv", q_head, before)
        return after, (_to_tokens(plan.scale * y), before)

    final, (y, states) = jax.lax.scan(step, initial, inputs)
    residual = (q, k, v, log_decay, starts, states)
    return (layout.join(y, q.shape[1]), final), residual


def _backward(plan, residual, cotangents):
    q, k, v, log_decay, starts, states = residual
    y_bar, final_bar = cotangents
    inputs = _split(plan, q, k, v, log_decay, starts)

    def step(state_bar, group):
        inputs, y_bar, before = group
        q, k, v, log = _load(plan, inputs)
        y_bar = plan.scale * layout.keys(plan, y_bar)
        (scores, q_head, k_tail), pull = jax.vjp(
            functools.partial(_inside, plan), q, k, log
        )
        total = _total(log)

        # dS: every chunk maps the cotangent behind it to the one before it.
        write_bar = _mm(plan, "...ik,...iv->...kv", q_head, y_bar)
        after_bar, first_bar = recurrence.exclusive_prefix(
            recurrence.Affine(total, write_bar), state_bar, reverse=True
        )
        v_bar = _mm(plan, "...ij,...iv->...jv", scores, y_bar)
        v_bar += _mm(plan, "...jk,...kv->...jv", k_tail, after_bar)
        q_bar, k_bar, log_bar = pull(
            (
                _mm(plan, "...iv,...jv->...ij", y_bar, v),
                _mm(plan, "...iv,...kv->...ik", y_bar, before),
                _mm(plan, "...jv,...kv->...jk", v, after_bar),
            )
        )
        carried = jnp.sum(total.act(before) * after_bar, axis=-1)
        log_bar += carried[..., None, :]
        bars = (q_bar, k_bar, v_bar, log_bar)
        return first_bar, tuple(_to_tokens(x) for x in bars)

    initial_bar, bars = jax.lax.scan(
        step,
        final_bar,
        (inputs, layout.group(plan, y_bar), states),
        reverse=True,
    )
    bars = (layout.join(x, q.shape[1]) for x in bars)
    bars = (
        x.astype(y.dtype)
        for x, y in zip(bars, (q, k, v, log_decay), strict=True)
    )
    return (*bars, None, initial_bar)


channel_chunk.defvjp(_forward, _backward)


def _inside(plan, q, k, log):
    """`channel_inside` for grouped heads: q, k [n,B,G,C,K], log [n,B,H,C,K]."""
    repeat = log.shape[2] // q.shape[2]
    if repeat > 1:
        q, k = (jnp.repeat(x, repeat, axis=2) for x in (q, k))
    return _channel_pairs.channel_inside(q, k, log, precision=plan.precision)


def _total(log):
    """Decay of whole chunks; a sum of gates <= 0 loses nothing that matters."""
    return recurrence.decay_of(jnp.sum(log, axis=-2))


def _mm(plan, subscripts, x, y):
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=plan.precision,
        preferred_element_type=plan.dtype,
    )


def _split(plan, *inputs):
    return tuple(None if x is None else layout.group(plan, x) for x in inputs)


def _load(plan, group):
    """One step's q, k [n,B,G,C,K], v [n,B,H,C,V], gates [n,B,H,C,K]."""
    q, k, v, log, starts = group
    q, k, v, log = (layout.keys(plan, x) for x in (q, k, v, log))
    if starts is not None:
        starts = starts.reshape(starts.shape[0], plan.group, 1, plan.chunk_size)
        starts = jnp.moveaxis(starts, 1, 0)
    return q, k, v, _channel_pairs.with_starts(log, starts)


def _to_tokens(x):
    return layout.to_tokens(x[..., None, :])
