"""Parallel and recurrent forms of softmax attention, the readable ones.

    y_i = sum_j p_ij v_j / (sum_j p_ij + exp(sink)),  p_ij = exp(s_ij)
    s_ij = scale q_i . k_j + sum of the gates of tokens j+1 .. i

Keys come in pieces (the cache, the new tokens), so that a decode step reads the
cache where it lies instead of copying it.  Memory O(T L); any derivative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _decays
from seqjax.ops import _softmax_gates


class Problem(NamedTuple):
    """Checked inputs of an attention call, in either dense form.

    Attributes:
      q: [B, T, H, K], scaled, in the accumulation dtype.
      pieces: (k [B, S, Hk, K], v [B, S, Hk, V]) of the cache if there is one,
        then those of the new tokens.
      sink: [H] in the accumulation dtype, or None.
      log_decay: [B, T, H], finite, or None.
      cached_decay: (high, low), each [B, S, H], finite; None without a gate or
        a cache.
      bands: `_softmax_bands.Bands`.
    """

    q: jax.Array
    pieces: tuple
    sink: jax.Array | None
    log_decay: jax.Array | None
    cached_decay: tuple[jax.Array, jax.Array] | None
    bands: tuple


def parallel(problem: Problem, precision) -> jax.Array:
    """All queries at once: [B, T, H, V] in the accumulation dtype."""
    decay = None
    if problem.log_decay is not None:
        gates = jnp.swapaxes(problem.log_decay, 1, 2)  # [B, H, T]
        decay, _ = _decays.segment_sums(gates)
        if problem.cached_decay is not None:
            # Reverse sums here lead only to cached keys: nothing cancels.
            sums = _softmax_gates.cumulative(problem.log_decay)
            high, low = (
                i.transpose(0, 2, 1)[..., None]
                + j.transpose(0, 2, 1)[:, :, None]
                for i, j in zip(sums, problem.cached_decay, strict=True)
            )
            decay = jnp.concatenate([high + low, decay], axis=-1)
    return _attend(problem, decay, precision)


def recurrent(problem: Problem, precision) -> jax.Array:
    """One query after another: [B, T, H, V] in the accumulation dtype."""
    q, log_decay = problem.q, problem.log_decay
    first, last, rank = problem.bands
    length = q.shape[1]
    cached = rank.shape[1] - length
    decay = None
    if log_decay is not None:
        # Sums of gates from behind each key to the query; 0 for keys to come.
        decay = tuple(
            jnp.zeros((q.shape[0], length, q.shape[2]), q.dtype)
            for _ in range(2)
        )
        if problem.cached_decay is not None:
            decay = tuple(
                jnp.concatenate([c, d], axis=1)
                for c, d in zip(problem.cached_decay, decay, strict=True)
            )
    steps = (q, log_decay, first, last, jnp.arange(length))

    def step(decay, token):
        q, gate, first, last, t = token
        table = None
        if gate is not None:
            past = (jnp.arange(rank.shape[1]) < cached + t)[None, :, None]
            gate = jnp.where(past, gate[:, None], 0)
            decay = _softmax_gates.add(decay, (gate, jnp.zeros_like(gate)))
            table = (decay[0] + decay[1]).transpose(0, 2, 1)[:, :, None]
        one = problem._replace(
            q=q[:, None],
            bands=(first[:, None], last[:, None], rank),
        )
        return decay, _attend(one, table, precision)[:, 0]

    # Tokens first.
    steps = tuple(
        x if x is None or x.ndim == 1 else jnp.moveaxis(x, 1, 0) for x in steps
    )
    _, y = jax.lax.scan(step, decay, steps)
    return jnp.moveaxis(y, 0, 1)


def step(problem: Problem, precision) -> jax.Array:
    """One query a row over a cache that holds its key already: [B, 1, H, V]."""
    decay = None
    if problem.cached_decay is not None:
        high, low = problem.cached_decay
        decay = (high + low).transpose(0, 2, 1)[:, :, None]
    return _attend(problem, decay, precision)


def _attend(problem, decay, precision):
    """Attention of q [B, T, H, K]; decay [B, H, T, L] or None."""
    q, pieces, sink = problem.q, problem.pieces, problem.sink
    batch, length, heads, width = q.shape
    groups = pieces[0][0].shape[2]
    keys = sum(k.shape[1] for k, _ in pieces)
    q = q.reshape(batch, length, groups, heads // groups, width)
    s = jnp.concatenate(
        [
            jnp.einsum(
                "bthgk,bshk->bhgts",
                q,
                k.astype(q.dtype),
                precision=precision,
            )
            for k, _ in pieces
        ],
        axis=-1,
    ).reshape(batch, heads, length, keys)
    if decay is not None:
        s = s + decay

    first, last, rank = (x.transpose(0, 2, 1) for x in problem.bands)
    if sink is None:
        # One key has weight 1 whatever its logit; rounding must not leave a
        # trace of it in the gradients.
        s = jnp.where((first == last)[..., None], 0, s)
    rank = rank[:, :, None, :]
    seen = (first[..., None] <= rank) & (rank <= last[..., None])
    top = jnp.max(s, axis=-1, where=seen, initial=-jnp.inf, keepdims=True)
    if sink is not None:
        sink = sink[None, :, None, None]
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    p = jnp.where(seen, jnp.exp(jnp.where(seen, s - top, 0)), 0)
    below = jnp.sum(p, axis=-1, keepdims=True)
    if sink is not None:
        below = below + jnp.exp(sink - top)
    below = jnp.where(below > 0, below, 1)

    p = p.reshape(batch, groups, heads // groups, length, keys)
    y, start = jnp.zeros((), q.dtype), 0
    for _, v in pieces:
        part = p[..., start : start + v.shape[1]]
        start += v.shape[1]
        y = y + jnp.einsum(
            "bhgts,bshv->bthgv",
            part,
            v.astype(q.dtype),
            precision=precision,
        )
    below = below[..., 0].transpose(0, 2, 1)[..., None]  # [B, T, H, 1]
    return y.reshape(batch, length, heads, y.shape[-1]) / below
