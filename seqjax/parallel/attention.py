"""Keys and values from other devices, in one message each way.

Tokens travel as an array [B, T/P, n] with all channels side by side: on the way
out as bits (`pack`), whatever the dtypes, and back as the sum of cotangents.

    all_gather   P T/P tokens come in one all-gather (LASP-2H, arXiv 2502.07563)
                 and their cotangents go back in one reduce-scatter
    halo         the last tokens in front of the shard (`seqjax.parallel.halo`)
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.parallel import halo


class Exchange(NamedTuple):
    """Static choice of what comes from other devices (hashable).

    Attributes:
      axis_name: mesh axis along which time is sharded.
      halo: tokens in front of the shard to fetch; None for all of all shards.
    """

    axis_name: str
    halo: int | None = None


def fetch(exchange: Exchange, route, x: jax.Array) -> jax.Array:
    """Tokens [B, L, n] of other devices, in order.

    Args:
      exchange: static choice.
      route: of `halo.route`, or None.
      x: [B, T/P, n], this shard's tokens.

    Returns:
      All shards' tokens, this one's among them, or the halo, in which 0 stands
      where there is no token.
    """
    axis_name = exchange.axis_name
    if exchange.halo is None:
        return jax.lax.all_gather(x, axis_name, axis=1, tiled=True)
    return halo.fetch(x, exchange.halo, route, axis_name)


def give_back(exchange: Exchange, route, x: jax.Array, length: int):
    """The transpose of `fetch`: [B, L, n] to sums [B, T/P, n]."""
    axis_name = exchange.axis_name
    if exchange.halo is None:
        return jax.lax.psum_scatter(
            x, axis_name, scatter_dimension=1, tiled=True
        )
    return halo.give_back(x, length, exchange.halo, route, axis_name)


def from_earlier(exchange: Exchange, length: int) -> jax.Array:
    """Which fetched tokens are those of shards in front: bool [L]."""
    devices = jax.lax.axis_size(exchange.axis_name)
    if exchange.halo is not None:
        return jnp.ones((halo.width(exchange.halo, length, devices),), bool)
    shard = jnp.arange(devices * length) // length
    return shard < jax.lax.axis_index(exchange.axis_name)


def pack(
    arrays: Sequence[jax.Array],
) -> tuple[jax.Array, Callable[[jax.Array], list[jax.Array]]]:
    """Arrays of tokens as one array of bits.

    Args:
      arrays: [B, T, ...] each, of 2, 4 or 8 bytes a number.

    Returns:
      (uint32 [B, T, n], the way back from [B, L, n] to arrays [B, L, ...]).
    """
    parts = [_to_bits(x) for x in arrays]
    ends = []
    for part in parts:
        ends.append((ends[-1] if ends else 0) + part.shape[2])

    def unpack(bits):
        pieces = jnp.split(bits, ends[:-1], axis=2)
        return [
            _from_bits(piece, x)
            for piece, x in zip(pieces, arrays, strict=True)
        ]

    return jnp.concatenate(parts, axis=2), unpack


def pack_sums(
    arrays: Sequence[jax.Array],
) -> tuple[jax.Array, Callable[[jax.Array], list[jax.Array]]]:
    """Arrays [B, T, ...] of one float dtype side by side, and the way back."""
    parts = [_flat(x) for x in arrays]
    ends = []
    for part in parts:
        ends.append((ends[-1] if ends else 0) + part.shape[2])

    def unpack(packed):
        pieces = jnp.split(packed, ends[:-1], axis=2)
        return [
            piece.reshape(*piece.shape[:2], *x.shape[2:])
            for piece, x in zip(pieces, arrays, strict=True)
        ]

    return jnp.concatenate(parts, axis=2), unpack


def _to_bits(x):
    x = _flat(x)
    if x.dtype.itemsize == 2:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2)))
        x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2)
    return _flat(jax.lax.bitcast_convert_type(x, jnp.uint32))


def _from_bits(bits, like):
    shape = like.shape[2:]
    if like.dtype.itemsize == 8:
        bits = bits.reshape(*bits.shape[:2], bits.shape[2] // 2, 2)
    x = _flat(jax.lax.bitcast_convert_type(bits, like.dtype))
    return x[..., : math.prod(shape)].reshape(*x.shape[:2], *shape)


def _flat(x):
    """All channels of a token along one axis; B may be 0."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
