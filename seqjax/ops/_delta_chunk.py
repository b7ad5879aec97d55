"""Chunk form of the rules that erase before they write, a gate a head at most.

A chunk of C tokens, in whatever way its rule and its gates make them, comes as
`Parts`.  The tokens write r with keys K~; what they write depends on what they
read, from the state S in front of the chunk (A) and from each other (L):

    (I + L) R = Z - A S                  solved with X = (I + L)^-1
    O   = Q~ S + P R
    S'  = decay S + K~^T R

so that the chunk is the affine map S' = M S + B with

    M = decay - K~^T X A                 B = K~^T X Z

(the WY representation).  A `lax.scan` walks over groups of chunks: inverses and
products of a group are one batch, `recurrence.exclusive_prefix` carries the
state with one product [K, K] x [K, V] a chunk.  Time O(T (C + K) (C + K + V))
a head.  Memory for the backward pass: the inputs, one state and one X a chunk,
(K V / C + C) floats a token and head.

The backward pass is written out below; with G the cotangent behind the chunk,

    dR = P^T dO + K~ G      dZ = X^T dR      dL = -dZ R^T      dA = -dZ S^T
    dS = Q~^T dO - (X A)^T P^T dO + M^T G

and the rule's own map from inputs to `Parts` pulls dP, dL, dQ~, dK~ back to
them.  Decays enter P and L as factors of pairs, so the gate gradient is a sum
of dP * P and dL * L, never a difference of large numbers.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _products
from seqjax.ops import _triangular

_mm, _tmm, _mmt = _products.mm, _products.tmm, _products.mmt


class Parts(NamedTuple):
    """Chunks as the core sees them, with leading axes [n, B, H].

    Attributes:
      lower: L [..., C, C], strictly lower triangular.
      scores: P [..., Q, C]; Q reads a chunk, C but for several steps a token.
      targets: Z [..., C, V].
      recall: A [..., C, K].
      queries: Q~ [..., Q, K], scaled.
      keys: K~ [..., C, K].
      log: of the chunk's decay, [...] or [..., K]; None for no decay.
      extra: (N [..., Q, V], E [..., K, V]) that depend on no state, or None;
        for the parallel form, the chunk form here has none.
    """

    lower: jax.Array
    scores: jax.Array
    targets: jax.Array
    recall: jax.Array
    queries: jax.Array
    keys: jax.Array
    log: jax.Array | None
    extra: tuple[jax.Array, jax.Array] | None = None


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable).

    Attributes:
      rule: (plan, inputs of a group, starts) -> (Parts, zeros), zeros the
        count of zero factors of each chunk, or None.
      chunk_size: tokens a chunk.
      group: chunks a scan step works on.
      steps: writes a token.
      scale: factor of q.
      dtype: of accumulation.
      precision: of products of inputs.
    """

    rule: Callable[..., tuple[Parts, jax.Array | None]]
    chunk_size: int
    group: int
    steps: int
    scale: float
    dtype: Any
    precision: jax.lax.Precision


def make_plan(
    rule,
    v,
    *,
    chunk_size: int,
    products: int,
    steps: int = 1,
    scale,
    dtype,
    precision,
) -> Plan:
    """Chooses the group of chunks for values [B, T * steps, H, V].

    A group holds about `products` chunks times heads: enough to keep the cores
    busy, few enough for their caches.
    """
    batch, length, heads, _ = v.shape
    length //= steps
    chunk_size = min(chunk_size, _contract.round_up(max(length, 1), 16))
    chunks = math.ceil(length / chunk_size)
    target = max(1, products // max(1, batch * heads))
    return Plan(
        rule,
        chunk_size,
        math.ceil(chunks / math.ceil(chunks / target)),
        steps,
        float(scale),
        dtype,
        precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def delta_chunk(plan: Plan, inputs, starts, initial):
    """Output [B,T,H,V] and final state [B,H,K,V] of a rule.

    Args:
      plan: static choices.
      inputs: dict of float arrays [B, T, ...] (or [B, T * steps, ...]) as the
        rule knows them, with q among them; None is kept.
      starts: bool [B, T], where a document starts, or None.
      initial: [B, H, K, V] in the accumulation dtype.

    Returns:
      (y, state), both in the accumulation dtype.
    """
    return _forward(plan, inputs, starts, initial)[0]


def _forward(plan, inputs, starts, initial):
    length = inputs["q"].shape[1]
    groups = split(plan, inputs, starts, length)

    def step(state, group):
        p, zeros = plan.rule(plan, *group)
        x = _triangular.inverse_of_unit_lower(p.lower)
        width = p.targets.shape[-1]
        # [X Z, X A] and K~^T of it, each as one wide product
        solved = _mm(x, jnp.concatenate([p.targets, p.recall], axis=-1))
        moved = _tmm(p.keys, solved)
        maps = recurrence.Dense(_kept(p, zeros) - moved[..., width:])
        before, after = recurrence.exclusive_prefix(
            recurrence.Affine(maps, moved[..., :width]), state
        )
        written = solved[..., :width] - _mm(solved[..., width:], before)
        y = _mm(p.queries, before, plan) + _mm(p.scores, written, plan)
        return after, (to_tokens(y), before, x)

    final, (y, states, inverses) = jax.lax.scan(step, initial, groups)
    residual = (inputs, starts, states, inverses)
    return (join(y, length), final), residual


def _backward(plan, residual, cotangents):
    inputs, starts, states, inverses = residual
    y_bar, final_bar = cotangents
    length = inputs["q"].shape[1]
    groups = split(plan, inputs, starts, length)
    y_bars = split(plan, y_bar, None, length)[0]

    def step(state_bar, group):
        (inputs, starts), y_bar, before, x = group
        p, pull, zeros = jax.vjp(
            lambda inputs: plan.rule(plan, inputs, starts),
            inputs,
            has_aux=True,
        )
        y_bar = to_chunks(plan, y_bar, p.scores.shape[-2])
        read_bar = _tmm(p.scores, y_bar, plan)  # dR, as far as read here
        recall = _mm(x, p.recall)
        maps = recurrence.Dense(_kept(p, zeros) - _tmm(p.keys, recall))
        before_bar = _tmm(p.queries, y_bar, plan) - _tmm(recall, read_bar)
        after_bar, first_bar = recurrence.exclusive_prefix(
            recurrence.Affine(maps.transpose(), before_bar),
            state_bar,
            reverse=True,
        )
        written = _mm(x, p.targets - _mm(p.recall, before))
        solved_bar = _tmm(x, read_bar + _mm(p.keys, after_bar))  # dZ
        decay = recurrence.Decay(p.log, zeros)
        bars = Parts(
            lower=-_mmt(solved_bar, written),
            scores=_mmt(y_bar, written, plan),
            targets=solved_bar,
            recall=-_mmt(solved_bar, before),
            queries=_mmt(y_bar, before, plan),
            keys=_mmt(written, after_bar),
            log=decay.cotangent(before, after_bar).log,
        )
        return first_bar, pull(bars)[0]

    initial_bar, grads = jax.lax.scan(
        step, final_bar, (groups, y_bars, states, inverses), reverse=True
    )
    bars = {
        name: None
        if x is None
        else join(grads[name], x.shape[1]).astype(x.dtype)
        for name, x in inputs.items()
    }
    return bars, None, initial_bar


delta_chunk.defvjp(_forward, _backward)


def _kept(p, zeros):
    """The decay of chunks as matrices, what M is without a write."""
    size, rank = p.keys.shape[-1], p.keys.ndim
    one = jnp.eye(size, dtype=p.keys.dtype)
    one = jnp.broadcast_to(
        one.reshape((1,) * (rank - 2) + one.shape),
        (*p.keys.shape[:-2], size, size),
    )
    return recurrence.Decay(p.log, zeros).act(one)


def to_chunks(plan: Plan, x: jax.Array, size: int) -> jax.Array:
    """[B, n*size, H, ...] to [n, B, H, size, ...], accumulation dtype."""
    batch, _, heads = x.shape[:3]
    x = x.reshape(batch, plan.group, size, heads, *x.shape[3:])
    x = jnp.moveaxis(x.swapaxes(2, 3), 1, 0)
    return x.astype(plan.dtype)


def to_tokens(x):
    """[n, B, H, Q, V] to [B, n*Q, H, V]."""
    n, batch, heads, size, width = x.shape
    x = x.transpose(1, 0, 3, 2, 4)
    return x.reshape(batch, n * size, heads, width)


def split(plan, inputs, starts, length):
    """Every [B, T*, ...] as [groups, B, ...], padded with identity tokens."""
    span = plan.chunk_size * plan.group

    def split(x):
        per_group = span * (x.shape[1] // length)
        pad = -x.shape[1] % per_group
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, per_group, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(split, (inputs, starts))


def join(x, length):
    """[groups, B, n*C, ...] to [B, T, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
