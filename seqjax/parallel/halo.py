"""Halo of a short window: the last real tokens in front of each shard.

A window of W tokens needs the W-1 real tokens before the shard.  Padding may
empty a shard, so these can come from several shards back: every device sends
its own last W-1 real tokens (one all-gather of (W-1)(D+2) floats a row), and
each keeps the last W-1 of those before it.
"""

import jax
import jax.numpy as jnp

from seqjax.recurrence import segments


def incoming_window(
    tail: jax.Array,
    tail_ids: jax.Array,
    initial: jax.Array,
    axis_name: str,
) -> tuple[jax.Array, jax.Array]:
    """The window in front of this device's shard, and its segment ids.

    Args:
      tail: [B, S, D], this shard's last S real tokens, latest last; varying
        over `axis_name`.
      tail_ids: int32 [B, S], their ids, -1 where there was no token.
      initial: [B, S, D], in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.

    Returns:
      (window [B, S, D], ids int32 [B, S]); entries of `initial` have the id of
      the first document, or -2 while no real token has come.
    """
    size, width = tail.shape[1:]
    halves = jnp.stack([tail_ids >> 16, tail_ids & 0xFFFF], axis=-1)
    packed = jnp.concatenate([tail, halves.astype(tail.dtype)], axis=-1)
    gathered = jax.lax.all_gather(packed, axis_name)  # [P, B, S, D+2]
    halves = gathered[..., width:].astype(jnp.int32)
    ids = (halves[..., 0] << 16) | halves[..., 1]
    before = jnp.arange(gathered.shape[0]) < jax.lax.axis_index(axis_name)
    ids = jnp.where(before[:, None, None], ids, segments.PADDING)
    # What survives of `initial` belongs to the first document, and then all
    # tokens before this shard are still in the tails.
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.min(
        jnp.where(ids == segments.PADDING, largest, ids), axis=(0, 2)
    )
    first = jnp.where(first == largest, INITIAL, first)
    initial_ids = jnp.broadcast_to(first[None, :, None], (1, *ids.shape[1:]))
    values = jnp.concatenate([initial[None], gathered[..., :width]])
    ids = jnp.concatenate([initial_ids, ids])
    batch = tail.shape[0]
    values = jnp.moveaxis(values, 0, 1).reshape(batch, -1, width)
    ids = jnp.moveaxis(ids, 0, 1).reshape(batch, -1)
    return last_real(values, ids, size)


INITIAL = -2  # id of window entries from in front of the sequence


def last_real(
    x: jax.Array, ids: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The last `count` entries of each row that are no padding.

    Args:
      x: [B, T, D], with at least `count` entries a row that are no padding.
      ids: int32 [B, T], -1 marks padding.
      count: how many.

    Returns:
      (x [B, count, D], ids [B, count]) in order.
    """
    # A stable sort by "is real" keeps order and moves padding to the front.
    order = jnp.argsort(ids != segments.PADDING, axis=1, stable=True)
    order = order[:, order.shape[1] - count :]
    return (
        jnp.take_along_axis(x, order[..., None], axis=1),
        jnp.take_along_axis(ids, order, axis=1),
    )
