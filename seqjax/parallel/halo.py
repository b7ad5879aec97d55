"""Halo of a window: the last real tokens in front of each shard.

Without padding they stand at the end of the shards in front, and every device
sends what is needed of its own (`fetch`).  Padding may empty whole shards, so
that they can come from anywhere:

    fetch            1 + ceil(log2(P-1)) messages of the window's tokens
    incoming_window  one all-gather of every shard's last tokens, cheaper where
                     the window is a few tokens: (W-1)(D+2) floats a row
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import segments
from seqjax.recurrence import varying


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
    shape = tail.shape[0], ids.shape[0] * size
    values = jnp.moveaxis(values, 0, 1).reshape(*shape, width)
    ids = jnp.moveaxis(ids, 0, 1).reshape(shape)
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


class Route(NamedTuple):
    """Where the real tokens in front of a shard are, where padding may be.

    Attributes:
      order: int32 [B, N], this shard's last N tokens with padding in front.
      held: int32 [L, B], how many of a device's tokens are known to be real
        after the first message, the second, ...
    """

    order: jax.Array
    held: jax.Array


def width(size: int, length: int, devices: int) -> int:
    """Tokens of a halo of `size`: no more than others have, at least one."""
    return max(1, min(size, (devices - 1) * length))


def hops(size: int, length: int, devices: int) -> list[int]:
    """Tokens that come from 1, 2, ... devices before, without padding."""
    left = width(size, length, devices)
    counts = []
    while left > 0:
        counts.append(min(left, length))
        left -= length
    return counts


def route(
    segment_ids: jax.Array, counts: jax.Array, size: int, axis_name: str
) -> Route:
    """The route of a halo among padding.

    Args:
      segment_ids: int32 [B, T/P] of this shard.
      counts: int32 [P, B], real tokens of every shard.
      size: tokens of the halo.
      axis_name: mesh axis along which time is sharded.
    """
    length = segment_ids.shape[1]
    devices = counts.shape[0]
    size = width(size, length, devices)
    real = segment_ids != segments.PADDING
    order = jnp.argsort(real, axis=1, stable=True)
    order = order[:, length - min(length, size) :]
    distance = jax.lax.axis_index(axis_name) - jnp.arange(devices)[:, None]
    held = []
    for reach in _reaches(devices):
        near = (distance >= 1) & (distance <= reach)
        held.append(jnp.sum(jnp.where(near, counts, 0), axis=0))
    held = jnp.minimum(jnp.stack(held), size) if held else counts[:0]
    return Route(order, held)


def fetch(
    x: jax.Array, size: int, route: Route | None, axis_name: str
) -> jax.Array:
    """The last `size` real tokens in front of this shard.

    Without padding each of ceil(size / (T/P)) devices in front sends what is
    needed of its own tokens.  With padding the tokens may be anywhere: what
    stands in front doubles with every message, from 1, 1, 2, 4, ... devices
    before, of which the last `size` real tokens are kept: 1 + ceil(log2(P-1))
    messages of `size` tokens.

    Args:
      x: [B, T/P, n].
      size: tokens of the halo.
      route: where padding may be, else None.
      axis_name: mesh axis along which time is sharded.

    Returns:
      [B, N, n] with N as `width` has it: latest last, zeros (among padding: or
      tokens of padding) in front where there are fewer.
    """
    length = x.shape[1]
    devices = jax.lax.axis_size(axis_name)
    if route is None:
        parts = [
            _send(x[:, length - count :], hop + 1, axis_name)
            for hop, count in enumerate(hops(size, length, devices))
        ]
        return jnp.concatenate(parts[::-1], axis=1)
    size = width(size, length, devices)
    tail = jnp.take_along_axis(x, route.order[:, :, None], axis=1)
    tail = jnp.pad(tail, ((0, 0), (size - tail.shape[1], 0), (0, 0)))
    tail = _send(tail, 1, axis_name)
    for reach, held in zip(_reaches(devices)[:-1], route.held, strict=False):
        further = _send(tail, reach, axis_name)
        place = jnp.arange(size)[None] + held[:, None]
        further = jnp.take_along_axis(
            further, jnp.minimum(place, size - 1)[:, :, None], axis=1
        )
        tail = jnp.where((place >= size)[:, :, None], tail, further)
    return tail


def give_back(
    x: jax.Array, length: int, size: int, route: Route | None, axis_name: str
) -> jax.Array:
    """The transpose of `fetch`: [B, N, n] to sums [B, T/P, n]."""
    devices = jax.lax.axis_size(axis_name)
    if route is None:
        # Padded and added: XLA of JAX 0.11.2 crashes on sums into slices.
        end, parts = x.shape[1], []
        for hop, count in enumerate(hops(size, length, devices)):
            part = _send(x[:, end - count : end], -(hop + 1), axis_name)
            parts.append(jnp.pad(part, ((0, 0), (length - count, 0), (0, 0))))
            end -= count
        return sum(parts[1:], parts[0])
    size = width(size, length, devices)
    steps = list(zip(_reaches(devices)[:-1], route.held, strict=False))
    for reach, held in steps[::-1]:
        place = jnp.arange(size)[None] + held[:, None]
        own = jnp.where((place >= size)[:, :, None], x, 0)
        source = jnp.arange(size)[None] - held[:, None]
        further = jnp.take_along_axis(
            x, jnp.maximum(source, 0)[:, :, None], axis=1
        )
        further = jnp.where((source >= 0)[:, :, None], further, 0)
        x = own + _send(further, -reach, axis_name)
    x = _send(x, -1, axis_name)[:, size - route.order.shape[1] :]
    total = jnp.zeros((x.shape[0], length, x.shape[2]), x.dtype)
    total = varying.match_varying(total, varying.varying_axes((x, route)))
    rows = jnp.arange(x.shape[0])[:, None]
    return total.at[rows, route.order].add(x)


def _reaches(devices):
    """How many devices in front are known after each message: 1, 2, 4, ..."""
    reaches = [1] if devices > 1 else []
    while reaches and reaches[-1] < devices - 1:
        reaches.append(2 * reaches[-1])
    return reaches


def _send(x, distance, axis_name):
    """To the device `distance` further on; zeros where none is."""
    devices = jax.lax.axis_size(axis_name)
    pairs = [
        (i, i + distance) for i in range(devices) if 0 <= i + distance < devices
    ]
    return jax.lax.ppermute(x, axis_name, pairs)
