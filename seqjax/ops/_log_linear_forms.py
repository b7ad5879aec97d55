"""Forms of log-linear attention: Fenwick levels of the additive rule.

A document's tokens have positions 0, 1, 2, ...  Token p sees token j on level

    level(p, j) = bits needed for p xor j        (0 for itself)

so the past falls into the binary blocks of p.  Going on from position a to p,
what stood on level l of a stands on level max(l, level(a, p)) of p: all blocks
below merge.  Levels beyond the last one given count as the last.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _decays
from seqjax.recurrence import levels as transitions


class Tokens(NamedTuple):
    """Inputs of every form, in the accumulation dtype and masked at padding.

    Attributes:
      q: [B, T, H, K].
      k: [B, T, H, K].
      v: [B, T, H, V].
      log: [B, T, H], log decays.
      scales: [B, T, H, L].
      position: int32 [B, T], of the last real token up to here.
      starts: bool [B, T], where a document starts, or None.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    log: jax.Array
    scales: jax.Array
    position: jax.Array
    starts: jax.Array | None


def level(p: jax.Array, j: jax.Array, levels: int) -> jax.Array:
    """The level on which positions see each other, at most `levels` - 1."""
    bits = 32 - jax.lax.clz(p ^ j)
    return jnp.minimum(bits, levels - 1)


def recurrent(tokens, before, initial, *, scale, precision):
    """One token after the other; `before` [B] is the position so far."""
    levels = tokens.scales.shape[-1]

    def step(carry, token):
        state, before = carry
        affine = recurrence.Affine(
            recurrence.decay_of(token.log), jnp.zeros_like(state)
        )
        if token.starts is not None:
            affine = recurrence.reset(affine, token.starts)
        state = transitions.merge(state, level(before, token.position, levels))
        state = recurrence.apply(affine, state)
        write = token.k[..., :, None] * token.v[..., None, :]
        state = state.at[:, :, 0].add(write)
        # Every level is weighed before the read: one product for all.
        q = token.scales[..., None] * token.q[:, :, None]
        y = jnp.einsum("bhlk,bhlkv->bhv", q, state, precision=precision)
        return (state, token.position), scale * y

    carry = (initial, before)
    if tokens.q.shape[1] == 1:  # decoding: no loop around a single step
        (state, _), y = step(
            carry, jax.tree.map(lambda x: jnp.squeeze(x, 1), tokens)
        )
        return y[:, None], state
    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    (state, _), y = jax.lax.scan(step, carry, time_first)
    return jnp.moveaxis(y, 0, 1), state


def parallel(tokens, before, initial, *, scale, precision):
    """All pairs at once: one chunk of T tokens."""
    run = functools.partial(_group, scale=scale, precision=precision)
    one = jax.tree.map(lambda x: x[None], tokens)
    (state, _), y = run((initial, before), one)
    return y[0], state


def chunked(tokens, before, initial, *, scale, precision, chunk_size, products):
    """Chunks in groups, rematerialised; a state of L levels a chunk is kept.

    Args:
      tokens: `Tokens`.
      before: int32 [B], position reached so far.
      initial: [B, H, L, K, V].
      scale: factor of q.
      precision: of matrix products.
      chunk_size: tokens a chunk.
      products: matrix products a scan step should hold.

    Returns:
      (y [B, T, H, V], state [B, H, L, K, V]).
    """
    batch, length, heads, _ = tokens.q.shape
    chunk_size = min(chunk_size, length)
    chunks = math.ceil(length / chunk_size)
    group = max(1, min(chunks, products // max(1, batch * heads)))
    steps = math.ceil(chunks / group)
    group = math.ceil(chunks / steps)
    pad = steps * group * chunk_size - length
    last = tokens.position[:, -1:]

    def split(x):
        """[B, T, ...] to [steps, n, B, C, ...], with identity tokens behind."""
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, steps, group, chunk_size, *x.shape[2:])
        return jnp.moveaxis(x, 0, 2)

    position = jnp.concatenate(
        [tokens.position, jnp.broadcast_to(last, (batch, pad))], axis=1
    )
    padded = jax.tree.map(split, tokens._replace(position=None))
    position = position.reshape(batch, steps, group, chunk_size)
    padded = padded._replace(position=jnp.moveaxis(position, 0, 2))
    run = functools.partial(_group, scale=scale, precision=precision)
    # Only states are kept between groups: the rest is computed again.
    (state, _), y = jax.lax.scan(jax.checkpoint(run), (initial, before), padded)
    y = jnp.moveaxis(y, 2, 0)
    y = y.reshape(batch, length + pad, *y.shape[4:])
    return y[:, :length], state


def _group(carry, tokens, *, scale, precision):
    """n chunks: tokens [n, B, C, ...], carry (state, position before)."""
    state, first = carry
    levels = tokens.scales.shape[-1]
    mm = functools.partial(jnp.einsum, precision=precision)
    q, k, v, scales = (
        jnp.swapaxes(x, 2, 3)
        for x in (tokens.q, tokens.k, tokens.v, tokens.scales)
    )  # [n, B, H, C, ...]
    starts = tokens.starts
    log, zeros = _decays.finite_part(
        jnp.swapaxes(tokens.log, 2, 3),
        None if starts is None else starts[:, :, None],
    )
    decays = _decays.chunk_decays(log, zeros, shape=log.shape, dtype=q.dtype)
    position = tokens.position
    end = position[:, :, -1]  # [n, B]
    before = jnp.concatenate([first[None], end[:-1]])

    # What each chunk leaves on the levels of its last token.
    there = level(end[..., None], position, levels)  # [n, B, C]
    kept = jnp.where(_on(there, levels), decays.tail[..., None], 0)
    write = mm("nbhjlk,nbhjv->nbhlkv", kept[..., None] * k[..., None, :], v)

    def across(state, chunk):
        total, upto, write = chunk
        moved = total.act(transitions.merge(state, upto))
        return moved + write, state

    upto = level(before, end, levels)
    state, incoming = jax.lax.scan(across, state, (decays.total, upto, write))

    # Read: the state from levels of `before`, then the chunk's own pairs.
    seen = level(before[..., None], position, levels)  # [n, B, C]
    merged = jnp.sum(jnp.where(_on(seen, levels), scales, 0), -1, keepdims=True)
    above = _index(levels) > seen[:, :, None, :, None]
    weight = decays.head[..., None] * jnp.where(above, scales, merged)
    y = mm(
        "nbhilk,nbhlkv->nbhiv", weight[..., None] * q[..., None, :], incoming
    )
    pair = level(position[..., :, None], position[..., None, :], levels)
    weights = sum(
        jnp.where(pair[:, :, None] == l, scales[..., l, None], 0)
        for l in range(levels)
    )
    scores = mm("nbhik,nbhjk->nbhij", q, k) * decays.pairs * weights
    y = scale * (y + mm("nbhij,nbhjv->nbhiv", scores, v))
    return (state, end[-1]), jnp.swapaxes(y, 2, 3)


def _on(index, levels):
    """bool [n, B, 1, C, L]: which level a token is on."""
    return index[:, :, None, :, None] == _index(levels)


def _index(levels):
    return jnp.arange(levels).reshape(1, 1, 1, 1, levels)
