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


class Blocks(NamedTuple):
    rows: Rows
    columns: Columns
    lowest: jax.Array  # [n, ...] smallest and largest rank of each key block
    highest: jax.Array

    @property
    def q(self):
        return self.rows.q

    @property
    def k(self):
        return self.columns.k

    @property
    def v(self):
        return self.columns.v


def split(plan, q, k, v, gate, bands):
    groups = k.shape[2]
    row_sums = column_sums = None
    if gate is not None:
        row_sums = tuple(_gates(plan, x, groups) for x in gate.query)
        column_sums = tuple(_gates(plan, x, groups) for x in gate.key)
    # Padding at the end: queries that see nothing, keys that nobody sees.
    first = _gates(plan, bands.first, groups, fill=1)
    last = _gates(plan, bands.last, groups)
    rank = _gates(plan, bands.rank, groups, fill=-1)
    rows = Rows(block(plan, q, groups) * plan.scale, first, last, row_sums)
    columns = Columns(
        block(plan, k, groups)[:, :, :, 0],
        block(plan, v, groups)[:, :, :, 0],
        rank,
        column_sums,
    )
    far = jnp.iinfo(rank.dtype).max
    lowest = jnp.min(jnp.where(rank < 0, far, rank), axis=-1)
    return Blocks(rows, columns, lowest, jnp.max(rank, axis=-1))


def column(blocks, j):
    return jax.tree.map(lambda x: x[j], blocks.columns)


def visible(row, blocks):
    """The range [start, stop) of key blocks that a query block may see."""
    far = jnp.iinfo(row.first.dtype).max
    empty = row.first > row.last
    first = jnp.min(jnp.where(empty, far, row.first), axis=-1)
    last = jnp.max(jnp.where(empty, -1, row.last), axis=-1)
    needed = (blocks.highest >= first[None]) & (blocks.lowest <= last[None])
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
