"""Where a shard stands in its row: documents counted across devices.

A shard of the sequence knows its own ids.  What it must know of the others are
five integers a row: how many real tokens there are, the first and the last real
id, and how many tokens have them.  One all-gather of int32 [B, 5] brings these,
whatever the length; without ids there is nothing to ask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import segments
from seqjax.recurrence import varying


class Shards(NamedTuple):
    """What every device tells of its shard, int32 [P, B].

    Attributes:
      count: real tokens.
      first: first real id, -1 where there is none.
      last: last real id, -1 where there is none.
      head: tokens of document `first` in the shard.
      tail: tokens of document `last` in the shard.
    """

    count: jax.Array
    first: jax.Array
    last: jax.Array
    head: jax.Array
    tail: jax.Array


class Before(NamedTuple):
    """What stands in front of this device's shard, row by row.

    Attributes:
      count: int32 [B], real tokens of the row.
      segment: int32 [B], the last real id, -1 where there is none.
      position: int32 [B], tokens of document `segment`: the index in its
        document of this shard's first real token, if it continues it.
    """

    count: jax.Array
    segment: jax.Array
    position: jax.Array


def gather(segment_ids: jax.Array, axis_name: str) -> Shards:
    """Tells all devices of all shards, with one all-gather.

    Call inside `jax.shard_map`.

    Args:
      segment_ids: int32 [B, T/P] of this shard, -1 at padding.
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      `Shards`, varying over `axis_name`.
    """
    ids = varying.match_varying(segment_ids, {axis_name})
    real = ids != segments.PADDING
    far = jnp.iinfo(ids.dtype).max
    # Ids do not decrease over real tokens, and padding is smaller than any.
    last = jnp.max(ids, axis=1, initial=segments.PADDING)
    first = jnp.min(jnp.where(real, ids, far), axis=1, initial=far)
    first = jnp.where(first == far, segments.PADDING, first)

    def count(where):
        return jnp.sum(real & where, axis=1, dtype=jnp.int32)

    own = Shards(
        count(real),
        first,
        last,
        count(ids == first[:, None]),
        count(ids == last[:, None]),
    )
    shards = jax.lax.all_gather(jnp.stack(own, axis=1), axis_name)  # [P, B, 5]
    return Shards(*(shards[..., i] for i in range(5)))


def before(shards: Shards, axis_name: str) -> Before:
    """What stands in front of this device's shard."""
    device = jax.lax.axis_index(axis_name)
    earlier = (jnp.arange(shards.count.shape[0]) < device)[:, None]
    segment = jnp.max(jnp.where(earlier, shards.last, segments.PADDING), axis=0)
    # A document's tokens are the last ones of every shard that it enters, but
    # for the one in which it ends.
    same = earlier & (shards.last == segment[None])
    return Before(
        _total(earlier, shards.count), segment, _total(same, shards.tail)
    )


def behind(shards: Shards, segment_ids: jax.Array, axis_name: str) -> jax.Array:
    """Tokens of each token's document on later devices: int32 [B, T/P]."""
    device = jax.lax.axis_index(axis_name)
    later = (jnp.arange(shards.count.shape[0]) > device)[:, None]
    last = shards.last[device]
    more = _total(later & (shards.first == last[None]), shards.head)
    return jnp.where(segment_ids == last[:, None], more[:, None], 0)


def document_positions(
    segment_ids: jax.Array | None,
    shape: tuple[int, ...],
    axis_name: str,
) -> jax.Array:
    """Index of each token of this shard in its document.

    Call inside `jax.shard_map`.

    Args:
      segment_ids: int32 [B, T/P] of this shard, -1 at padding; None where every
        row is one document without padding, for which nothing is exchanged.
      shape: (B, T/P).
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      int32 [B, T/P], what `recurrence.real_positions` gives for the whole
      sequence: 0, 1, 2, ... over the real tokens of a document; padding repeats
      the position of the last real token before it (0 if none).
    """
    if segment_ids is None:
        first = jax.lax.axis_index(axis_name) * shape[1]
        steps = first + jnp.arange(shape[1], dtype=jnp.int32)[None]
        return jnp.broadcast_to(steps, shape)
    front = before(gather(segment_ids, axis_name), axis_name)
    last = jax.lax.cummax(segment_ids, axis=1)  # id of the last real token
    continued = last == front.segment[:, None]
    any_real = last != segments.PADDING
    positions = segments.real_positions(segment_ids)
    positions += jnp.where(continued & any_real, front.position[:, None], 0)
    # Padding in front of the shard's first real token.
    none = jnp.maximum(front.position - 1, 0)[:, None]
    return jnp.where(any_real, positions, none)


def document_starts(segment_ids: jax.Array, axis_name: str) -> jax.Array:
    """Marks real tokens that start another document than the last real one's.

    Args:
      segment_ids: int32 [B, T/P] of this shard, -1 at padding.
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      bool [B, T/P], what `recurrence.segment_starts` gives for the whole
      sequence.
    """
    front = before(gather(segment_ids, axis_name), axis_name)
    return starts(segment_ids, front.segment)


def starts(segment_ids: jax.Array, before: jax.Array) -> jax.Array:
    """`recurrence.segment_starts` of tokens behind real id `before` [B]."""
    real = segment_ids != segments.PADDING
    first = real & (jnp.cumsum(real, axis=1, dtype=jnp.int32) == 1)
    before = before[:, None]
    changed = (before != segments.PADDING) & (segment_ids != before)
    return segments.segment_starts(segment_ids) | (first & changed)


def _total(where, counts):
    return jnp.sum(jnp.where(where, counts, 0), axis=0, dtype=jnp.int32)
