"""Blocks of queries and keys for the chunk form of softmax attention.

Layouts: [B, T, H, D] outside; blocks are [n, B, Hk, G, C, D] with H = Hk G.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rows(NamedTuple):
    """Query blocks [n, B, Hk, G, C, ...]; `first`, `last` broadcast."""

    q: jax.Array
    first: jax.Array
    last: jax.Array
    sums: tuple[jax.Array, ...] | None  # (high, low)


class Columns(NamedTuple):
    """Key blocks [n, B, Hk, C, ...]; `rank` and `sums` [n, B, Hk, G, C]."""

    k: jax.Array
    v: jax.Array
    rank: jax.Array
    sums: tuple[jax.Array, ...] | None  # (high, low)


class Keys(NamedTuple):
    """Key blocks, and the smallest and largest rank of each."""

    columns: Columns
    lowest: jax.Array
    highest: jax.Array

    def column(self, j):
        """Key block j."""
        return jax.tree.map(lambda x: x[j], self.columns)


def rows_of(plan, groups: int, q, first, last, sums) -> Rows:
    """Query blocks.

    Args:
      plan: static choices.
      groups: Hk, heads of the keys.
      q: [B, T, H, K].
      first: int32 [B, T, H], H may be 1: the first rank a query sees.
      last: int32, shaped as `first`.
      sums: pair of [B, T, H], sums of gates, or None.
    """
    if sums is not None:
        sums = tuple(_gates(plan, x, groups) for x in sums)
    # Padding at the end: queries that see nothing.
    return Rows(
        block(plan, q, groups) * plan.scale,
        _gates(plan, first, groups, fill=1),
        _gates(plan, last, groups),
        sums,
    )


def keys_of(plan, k, v, rank, sums) -> Keys:
    """Key blocks.

    Args:
      plan: static choices.
      k: [B, L, Hk, K].
      v: [B, L, Hk, V].
      rank: int32 [B, L, H], H may be 1.
      sums: pair of [B, L, H], sums of gates, or None.
    """
    groups = k.shape[2]
    if sums is not None:
        sums = tuple(_gates(plan, x, groups) for x in sums)
    # Padding at the end: keys that nobody sees.
    rank = _gates(plan, rank, groups, fill=-1)
    columns = Columns(
        block(plan, k, groups)[:, :, :, 0],
        block(plan, v, groups)[:, :, :, 0],
        rank,
        sums,
    )
    far = jnp.iinfo(rank.dtype).max
    lowest = jnp.min(jnp.where(rank < 0, far, rank), axis=-1)
    return Keys(columns, lowest, jnp.max(rank, axis=-1))


def visible(row, keys):
    """The range [start, stop) of key blocks that a query block may see."""
    far = jnp.iinfo(row.first.dtype).max
    empty = row.first > row.last
    first = jnp.min(jnp.where(empty, far, row.first), axis=-1)
    last = jnp.max(jnp.where(empty, -1, row.last), axis=-1)
    needed = (keys.highest >= first[None]) & (keys.lowest <= last[None])
    needed = jnp.any(needed, axis=(1, 2, 3))
    count = needed.shape[0]
    start = jnp.argmax(needed)
    stop = jnp.where(jnp.any(needed), count - jnp.argmax(needed[::-1]), start)
    return start, stop


def block(plan, x, groups, fill=0):
    """[B, T, H, D] to [n, B, Hk, G, C, D] in the accumulation dtype."""
    batch, length, heads, width = x.shape
    size = plan.block
    pad = -length % size
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=fill)
    x = x.reshape(batch, -1, size, groups, heads // groups, width)
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(plan.dtype)


def _gates(plan, x, groups, fill=0):
    """[B, T, H] to [n, B, Hk, G, C]; H = 1 broadcasts over heads."""
    groups = groups if x.shape[2] > 1 else 1
    return block(plan, x[..., None], groups, fill)[..., 0]


def unblock(x, batch, length, heads):
    """[n, B, Hk, G, C, D] to [B, T, H, D]."""
    x = x.transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, -1, heads, x.shape[-1])[:, :length]


def unblock_keys(x, batch, length):
    """[n, B, Hk, C, D] to [B, T, Hk, D]."""
    return unblock(x[:, :, :, None], batch, length, x.shape[2])


def unblock_gates(x, batch, length):
    """[n, B, Hk, G, C] to [B, T, H]."""
    heads = x.shape[2] * x.shape[3]
    return unblock(x[..., None], batch, length, heads)[..., 0]
