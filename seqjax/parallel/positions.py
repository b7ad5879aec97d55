"""Where a shard stands in its row: documents counted across devices.

A shard of the sequence knows its own ids.  What it must know of the shards
before it are three integers a row: how many real tokens came, the last real id,
and how many tokens of that document.  One all-gather of int32 [B, 3] brings
them, whatever the length; without ids there is nothing to ask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import segments
from seqjax.recurrence import varying


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


def before(segment_ids: jax.Array, axis_name: str) -> Before:
    """Counts the tokens in front of this device's shard.

    Call inside `jax.shard_map`.

    Args:
      segment_ids: int32 [B, T/P] of this shard, -1 at padding.
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      `Before`, varying over `axis_name`.
    """
    return before_all(segment_ids, axis_name)[0]


def before_all(
    segment_ids: jax.Array, axis_name: str
) -> tuple[Before, jax.Array]:
    """As `before`, and the real tokens of every shard: int32 [P, B]."""
    segment_ids = varying.match_varying(segment_ids, {axis_name})
    real = segment_ids != segments.PADDING
    last = jnp.max(segment_ids, axis=1, initial=segments.PADDING)
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    tail = real & (segment_ids == last[:, None])
    tail = jnp.sum(tail, axis=1, dtype=jnp.int32)
    own = jnp.stack([count, last, tail], axis=1)
    shards = jax.lax.all_gather(own, axis_name)  # [P, B, 3]

    rank = jax.lax.axis_index(axis_name)
    earlier = (jnp.arange(shards.shape[0]) < rank)[:, None]
    counts, last, tail = (shards[..., i] for i in range(3))
    # Ids do not decrease and padding is smaller than any of them.
    segment = jnp.max(jnp.where(earlier, last, segments.PADDING), axis=0)
    # A document's tokens are the last ones of every shard that it enters, but
    # for the one in which it ends.
    tail = jnp.where(earlier & (last == segment[None]), tail, 0)
    count = jnp.sum(jnp.where(earlier, counts, 0), axis=0, dtype=jnp.int32)
    position = jnp.sum(tail, axis=0, dtype=jnp.int32)
    return Before(count, segment, position), counts


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
    front = before(segment_ids, axis_name)
    continued, any_real = _continuing(segment_ids, front)
    positions = segments.real_positions(segment_ids)
    positions += jnp.where(continued & any_real, front.position[:, None], 0)
    # Padding in front of the shard's first real token.
    none = jnp.maximum(front.position - 1, 0)[:, None]
    return jnp.where(any_real, positions, none)


def document_starts(
    segment_ids: jax.Array, axis_name: str
) -> tuple[jax.Array, Before]:
    """Marks real tokens that start another document than the last real one's.

    Args:
      segment_ids: int32 [B, T/P] of this shard, -1 at padding.
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      (bool [B, T/P], what `recurrence.segment_starts` gives for the whole
      sequence, and `Before`).
    """
    front = before(segment_ids, axis_name)
    return starts(segment_ids, front), front


def starts(segment_ids: jax.Array, front: Before) -> jax.Array:
    """`document_starts`, with what stands in front known already."""
    real = segment_ids != segments.PADDING
    first = real & (jnp.cumsum(real, axis=1, dtype=jnp.int32) == 1)
    before = front.segment[:, None]
    changed = (before != segments.PADDING) & (segment_ids != before)
    return segments.segment_starts(segment_ids) | (first & changed)


def _continuing(segment_ids, front):
    """Tokens of the document in front; tokens with a real one up to them."""
    last = jax.lax.cummax(segment_ids, axis=1)
    return last == front.segment[:, None], last != segments.PADDING
