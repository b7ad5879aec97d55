"""Rings of devices: blocks that visit every device, and a balanced order.

With causal attention and contiguous shards the last device works on P - 1/2
pairs of shards and the first on 1/2, and a ring waits for the slowest.  With 2P
half-shards, of which device r works on r and 2P-1-r (zigzag order), every one
has as much to do:

    contiguous   (T/P)^2 (P - 1/2)   pairs of tokens, the last device
    zigzag       (T/P)^2 P / 2       every device: fewer by 2 - 1/P

The order is that of the work alone: half-shards are exchanged on the way in and
back on the way out, in two messages each, since one half of every shard is an
even and the other an odd one, and so are those of every device's work.
"""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, axis_name: str) -> jax.Array:
    """What the device before this one held; device 0 has the last one's."""
    devices = jax.lax.axis_size(axis_name)
    pairs = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.lax.ppermute(x, axis_name, pairs)


def units(axis_name: str, zigzag: bool, device=None) -> jax.Array:
    """Numbers, in order of time, of the parts a device works on: int32 [U].

    Args:
      axis_name: mesh axis along which time is sharded.
      zigzag: two half-shards of 2P, else one shard of P.
      device: its index; None for this one.
    """
    if device is None:
        device = jax.lax.axis_index(axis_name)
    if not zigzag:
        return jnp.stack([device])
    return jnp.stack([device, 2 * jax.lax.axis_size(axis_name) - 1 - device])


def to_zigzag(x: jax.Array, axis_name: str) -> jax.Array:
    """Half-shards r and 2P-1-r of contiguous shards.

    Args:
      x: [B, T/P, n] of this shard, T/P even.
      axis_name: mesh axis along which time is sharded.

    Returns:
      [B, T/P, n], the earlier half-shard in front.
    """
    half = x.shape[1] // 2
    even, odd = (
        jax.lax.ppermute(part, axis_name, _pairs(which, axis_name))
        for which, part in enumerate((x[:, :half], x[:, half:]))
    )
    return jnp.concatenate(_swapped(even, odd, axis_name), axis=1)


def from_zigzag(x: jax.Array, axis_name: str) -> jax.Array:
    """The way back from `to_zigzag`, which is also its transpose."""
    half = x.shape[1] // 2
    halves = _swapped(x[:, :half], x[:, half:], axis_name)
    parts = [
        jax.lax.ppermute(
            part, axis_name, [(b, a) for a, b in _pairs(which, axis_name)]
        )
        for which, part in enumerate(halves)
    ]
    return jnp.concatenate(parts, axis=1)


def _pairs(which, axis_name):
    """(device of half-shard 2i + which, device that works on it)."""
    devices = jax.lax.axis_size(axis_name)
    blocks = [2 * i + which for i in range(devices)]
    return [
        (i, block if block < devices else 2 * devices - 1 - block)
        for i, block in enumerate(blocks)
    ]


def _swapped(x, y, axis_name):
    """(x, y) on even devices and (y, x) on odd ones."""
    odd = jax.lax.axis_index(axis_name) % 2 == 1
    return [jnp.where(odd, y, x), jnp.where(odd, x, y)]
