"""Where a shard of the sequence stands, for softmax attention.

Ranks of tokens, starts of documents and sums of forget gates are those of the
whole row, so that the forms see a shard as queries of a longer sequence.  They
take a few numbers a row and device: one message for the ids, one for the gates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _softmax_bands
from seqjax.ops import _softmax_gates
from seqjax.parallel import attention as exchanges
from seqjax.parallel import positions

_PADDING = _softmax_bands.PADDING


class Place(NamedTuple):
    """This shard in its row.

    Attributes:
      tokens: `_softmax_bands.Tokens` of this shard; ranks, starts and length
        those of the whole row.
      ids: int32 [B or 1, T/P].
      document: int32 [B], rank at which the row's last document starts.
      end: int32 [B, T/P], rank of the last token of each token's document.
      counts: int32 [P, B], real tokens of every shard; None without ids.
    """

    tokens: _softmax_bands.Tokens
    ids: jax.Array
    document: jax.Array
    end: jax.Array
    counts: jax.Array | None


def locate(segment_ids, length: int, cache, axis_name: str) -> Place:
    """Ranks and documents of a shard.

    Args:
      segment_ids: int32 [B, T/P] or None, as `_softmax_bands.locate` has them.
      length: T/P.
      cache: `AttentionState` or None, in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.
    """
    device = jax.lax.axis_index(axis_name)
    devices = jax.lax.axis_size(axis_name)
    base = jnp.zeros((1,), jnp.int32)
    cached, last_id = None, jnp.full((1,), _PADDING, jnp.int32)
    if cache is not None:
        base = cache.length
        last_id, cached = _softmax_bands.last_document(cache)
    if segment_ids is None:
        steps = device * length + jnp.arange(length, dtype=jnp.int32)
        rank = base[:, None] + steps[None]
        total = base + devices * length
        tokens = _softmax_bands.Tokens(
            rank, jnp.zeros_like(rank), total, cached
        )
        ids = jnp.broadcast_to(jnp.maximum(last_id, 0)[:, None], rank.shape)
        end = jnp.broadcast_to(total[:, None] - 1, rank.shape)
        return Place(tokens, ids, jnp.zeros_like(total), end, None)

    shards = positions.gather(segment_ids, axis_name)
    front = positions.before(shards, axis_name)
    # The row's first document may continue that of the cache.
    far = jnp.iinfo(jnp.int32).max
    first = jnp.min(jnp.where(shards.count > 0, shards.first, far), axis=0)
    continued = (first == last_id) | (last_id == _PADDING)
    real = segment_ids != _PADDING
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    rank = (base + front.count)[:, None] + count - 1
    rank = jnp.where(real, rank, _PADDING)
    before = jnp.where(front.segment == _PADDING, last_id, front.segment)
    starts = positions.starts(segment_ids, before)
    # Where the document in front of this shard starts: 0 in the cache.
    inside = (front.segment == first) & continued
    inside |= front.segment == _PADDING
    start = base + front.count - front.position
    start = jnp.where(inside, 0, start)[:, None]
    start = jnp.maximum(
        jax.lax.cummax(jnp.where(starts, rank, 0), axis=1), start
    )
    total = base + jnp.sum(shards.count, axis=0, dtype=jnp.int32)
    last = jnp.max(shards.last, axis=0)
    tail = jnp.where(shards.last == last[None], shards.tail, 0)
    document = total - jnp.sum(tail, axis=0, dtype=jnp.int32)
    inside = ((last == first) & continued) | (last == _PADDING)
    document = jnp.where(inside, 0, document)
    tokens = _softmax_bands.Tokens(rank, start, total, cached)
    end = _ends(tokens) + positions.behind(shards, segment_ids, axis_name)
    return Place(tokens, segment_ids, document, end, shards.count)


def _ends(tokens):
    """Rank of each document's last token in this shard."""
    last = jnp.max(tokens.rank, axis=1, keepdims=True)
    start = tokens.start
    ends = jnp.where(start[:, 1:] != start[:, :-1], start[:, 1:] - 1, last)
    ends = jnp.concatenate([ends, last], axis=1)
    return jax.lax.cummin(ends, axis=1, reverse=True)


class Gates(NamedTuple):
    """Forget gates of a shard.

    Attributes:
      log: [B, T/P, H], finite gates that enter sums.
      sums: (high, low) [B, T/P, H], constants: sums since the document's
        start, on whichever device that is.
      cut: int32 [B, H], rank of the last gate of -inf in front of the shard.
    """

    log: jax.Array
    sums: tuple[jax.Array, jax.Array]
    cut: jax.Array


def gates_of(log_decay, tokens, axis_name: str) -> Gates:
    """Gates [B, T/P, H] of a shard, with what came in front of it."""
    real = tokens.real[..., None]
    opens = (tokens.rank == tokens.start) & tokens.real
    log = _softmax_gates.finite(log_decay, real & ~opens[..., None])
    starts = jnp.broadcast_to(opens, log.shape[:2])
    high, low = _softmax_gates.cumulative(jax.lax.stop_gradient(log), starts)
    cuts = recurrence.vanishes(log_decay) & real
    cut = jnp.max(jnp.where(cuts, tokens.rank[..., None], 0), axis=1)
    opened = jnp.any(starts, axis=1)
    own = [high[:, -1], low[:, -1], cut, opened.astype(jnp.int32)]
    packed, unpack = exchanges.pack([x[:, None] for x in own])
    shards = jax.lax.all_gather(packed[:, 0], axis_name)  # [P, B, n]
    highs, lows, cuts, opens_ = (
        x.swapaxes(0, 1) for x in unpack(shards.swapaxes(0, 1))
    )

    earlier = jnp.arange(shards.shape[0]) < jax.lax.axis_index(axis_name)

    def step(sums, shard):
        more, opened, earlier = shard
        total = _softmax_gates.add(sums, more)
        opened = (opened > 0)[:, None]
        fresh = (
            jnp.where(earlier, jnp.where(opened, m, t), s)
            for m, t, s in zip(more, total, sums, strict=True)
        )
        return tuple(fresh), None

    zero = (jnp.zeros_like(high[:, 0]), jnp.zeros_like(low[:, 0]))
    front, _ = jax.lax.scan(step, zero, ((highs, lows), opens_, earlier))
    front = tuple(x[:, None] for x in front)
    since = _softmax_gates.add(front, (high, low))
    here = jnp.cumsum(starts, axis=1)[..., None] > 0
    high, low = (
        jnp.where(here, a, b) for a, b in zip((high, low), since, strict=True)
    )
    cut = jnp.max(jnp.where(earlier[:, None, None], cuts, 0), axis=0)
    return Gates(log, (high, low), cut)


def bands_of(place: Place, plan, log_decay, gates, cached_log_decay):
    """`_softmax_bands.Bands` of a shard; the keys' ranks cache first."""
    bands = _softmax_bands.bands(
        place.tokens,
        causal=True,
        window=plan.window,
        log_decay=log_decay,
        cached_log_decay=cached_log_decay,
    )
    if not plan.causal:
        last = jnp.where(place.tokens.real, place.end, 0)
        bands = bands._replace(last=last[..., None])
    if gates is not None:
        bands = bands._replace(
            first=jnp.maximum(bands.first, gates.cut[:, None])
        )
    return bands
