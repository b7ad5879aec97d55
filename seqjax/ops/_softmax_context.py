"""Chunk form of softmax attention on a shard of the sequence.

A query sees keys of its own shard, of the cache in front of the sequence, and
of other shards: of all of them, gathered, or of the halo of a window
(`seqjax.parallel.attention`).  The own keys are swept first, which needs no
other device; the sweep over the rest goes on from there.  Backward the same two
sweeps are done from the saved logarithms of the denominators, and the
cotangents of what came from other devices go back in one message.

Memory for the backward pass: inputs, output, and the keys and values that came.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _softmax_blocks
from seqjax.ops import _softmax_chunk
from seqjax.ops import _softmax_sweep
from seqjax.parallel import attention as exchanges
from seqjax.parallel import halo


class Cached(NamedTuple):
    """Keys in front of the whole sequence, the same on every device.

    Attributes:
      k: [B, S, Hk, K].
      v: [B, S, Hk, V].
      rank: int32 [B, S, H], H may be 1.
      behind: [B, S, H] or None; decay from each key to the end of the cache,
        finite; only its cotangent is used.
      sums: pair of [B, S, H] or None, as `Shard.sums`.
    """

    k: jax.Array
    v: jax.Array
    rank: jax.Array
    behind: jax.Array | None
    sums: tuple[jax.Array, ...] | None


class Shard(NamedTuple):
    """A shard of the sequence, all arrays varying over the same mesh axes.

    Attributes:
      q: [B, T/P, H, K].
      k: [B, T/P, Hk, K].
      v: [B, T/P, Hk, V].
      sink: [H] or None.
      first: int32 [B, T/P, H], H may be 1: the first rank a query sees.
      last: int32, shaped as `first`.
      rank: int32 [B, T/P, 1], among the real tokens of the whole row.
      log: [B, T/P, H] or None, finite gates; only its cotangent is used.
      sums: pair (high, low) of [B, T/P, H] or None: sums of the gates since
        the document's start, on whichever device that is.
      cache: `Cached` or None.
      route: of `halo.route`, or None.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    sink: jax.Array | None
    first: jax.Array
    last: jax.Array
    rank: jax.Array
    log: jax.Array | None
    sums: tuple[jax.Array, ...] | None
    cache: Cached | None
    route: halo.Route | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def shard_attention(plan, exchange, shard: Shard) -> jax.Array:
    """Softmax attention [B, T/P, H, V] in the accumulation dtype.

    Args:
      plan: `_softmax_chunk.Plan`.
      exchange: `exchanges.Exchange`.
      shard: `Shard`.

    Returns:
      y; differentiable once, in reverse mode.
    """
    return _forward(plan, exchange, shard)[0]


def _forward(plan, exchange, shard):
    batch, length, heads, _ = shard.q.shape
    rows, own = split(plan, shard)
    carry = _softmax_sweep.start(
        plan, shard.sink, rows.q.shape[1:-1], shard.v.shape[-1], shard
    )
    carry = _softmax_sweep.forward(plan, rows, own, carry, shared=True)
    context = _context(exchange, shard)
    keys = _softmax_blocks.keys_of(plan, *context)
    carry = _softmax_sweep.forward(plan, rows, keys, carry)
    out, lse = _softmax_sweep.finish(carry)
    y = _softmax_blocks.unblock(out, batch, length, heads)
    return y, (shard, context, y, lse)


def _backward(plan, exchange, residual, y_bar):
    shard, context, y, lse = residual
    batch, length, heads, _ = shard.q.shape
    sink = shard.sink is not None
    rows, own = split(plan, shard)
    outer = _softmax_chunk.outer_of(plan, shard.k.shape[2], y_bar, y, lse)
    # First what other devices wait for.
    keys = _softmax_blocks.keys_of(plan, *context)
    far = _softmax_sweep.backward(
        plan, rows, outer, keys, diagonal=None, sink=sink
    )
    cache_bar, back = _return(plan, exchange, shard, far)
    near = _softmax_sweep.backward(
        plan, rows, outer, own, diagonal=0, sink=sink
    )
    q = _softmax_blocks.unblock(near.q + far.q, batch, length, heads)
    k = back[0] + _softmax_blocks.unblock_keys(near.k, batch, length)
    v = back[1] + _softmax_blocks.unblock_keys(near.v, batch, length)
    log = None
    if shard.log is not None:
        log = back[2] + _softmax_blocks.unblock_gates(near.gate, batch, length)
        # Gates here between queries behind them and keys of other shards.
        sums = _softmax_blocks.unblock_gates(far.rows, batch, length)
        log += jax.lax.cumsum(sums, axis=1, reverse=True)
    bars = shard._replace(
        q=(plan.scale * q).astype(shard.q.dtype),
        k=k.astype(shard.k.dtype),
        v=v.astype(shard.v.dtype),
        sink=_softmax_sweep.sink_bar(plan, shard.sink, outer) if sink else None,
        first=None,
        last=None,
        rank=None,
        log=log,
        sums=None,
        cache=cache_bar,
        route=None,
    )
    return (bars,)


shard_attention.defvjp(_forward, _backward)


def split(plan, shard: Shard):
    """Blocks of a shard's queries, and of its keys."""
    rows = _softmax_blocks.rows_of(
        plan, shard.k.shape[2], shard.q, shard.first, shard.last, shard.sums
    )
    return rows, _softmax_blocks.keys_of(
        plan, shard.k, shard.v, shard.rank, shard.sums
    )


def _context(exchange, shard):
    """(k, v, rank, sums) of the cache and of other shards, [B, L, ...]."""
    sums = () if shard.sums is None else shard.sums
    # Zeros come where there is no token: a rank of -1.
    packed, unpack = exchanges.pack([shard.k, shard.v, shard.rank + 1, *sums])
    packed = exchanges.fetch(exchange, shard.route, packed)
    k, v, rank, *sums = unpack(packed)
    rank = rank - 1
    if exchange.halo is None:
        own = jnp.arange(rank.shape[1]) // shard.k.shape[1]
        own = own == jax.lax.axis_index(exchange.axis_name)
        rank = jnp.where(own[None, :, None], -1, rank)
    cache = shard.cache
    if cache is None:
        return k, v, rank, tuple(sums) or None
    shape = (*rank.shape[:2], cache.rank.shape[2])
    rank = jnp.broadcast_to(rank, shape)
    if sums:
        sums = [_join(a, b) for a, b in zip(cache.sums, sums, strict=True)]
    return (
        _join(cache.k, k),
        _join(cache.v, v),
        _join(cache.rank, rank),
        tuple(sums) or None,
    )


def _join(cached, came):
    return jnp.concatenate([cached, came], axis=1)


def _return(plan, exchange, shard, far):
    """Cotangents of the cache, and of this shard's keys on other devices."""
    batch, length = shard.q.shape[:2]
    slots = 0 if shard.cache is None else shard.cache.k.shape[1]
    early = exchanges.from_earlier(exchange, length)
    total = slots + early.shape[0]
    bars = [
        _softmax_blocks.unblock_keys(far.k, batch, total),
        _softmax_blocks.unblock_keys(far.v, batch, total),
    ]
    if shard.log is not None:
        gate = _softmax_blocks.unblock_gates(far.gate, batch, total)
        bars.append(
            jnp.concatenate(
                [
                    gate[:, :slots],
                    jnp.where(early[None, :, None], gate[:, slots:], 0),
                ],
                axis=1,
            )
        )
    packed, unpack = exchanges.pack_sums([x[:, slots:] for x in bars])
    back = unpack(exchanges.give_back(exchange, shard.route, packed, length))
    cache = shard.cache
    if cache is None:
        return None, back
    behind = None
    if shard.log is not None:
        columns = _softmax_blocks.unblock_gates(far.columns, batch, total)
        behind = columns[:, :slots]
    return (
        cache._replace(
            k=bars[0][:, :slots].astype(cache.k.dtype),
            v=bars[1][:, :slots].astype(cache.v.dtype),
            rank=None,
            behind=behind,
            sums=None,
        ),
        back,
    )
