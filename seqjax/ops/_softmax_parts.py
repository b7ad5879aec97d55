"""Parts of a shard in the order of a ring's work, and their blocks.

A device works on U parts of the sequence: its shard, or two half-shards in
zigzag order (`seqjax.parallel.ring`).  No block of queries or keys goes over
the end of a part; blocks of all parts stand in one axis, earlier parts first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _softmax_blocks
from seqjax.parallel import attention as exchanges
from seqjax.parallel import ring


class Route(NamedTuple):
    """Static choices of the ring (hashable)."""

    axis_name: str
    zigzag: bool

    @property
    def parts(self) -> int:
        """U, parts of the sequence on a device."""
        return 2 if self.zigzag else 1


def to_work(route, shard):
    """The shard with its tokens in the order of the work."""
    if not route.zigzag:
        return shard._replace(log=None)
    batch = shard.q.shape[0]
    arrays = [shard.q, shard.k, shard.v]
    arrays += [
        jnp.broadcast_to(x, (batch, *x.shape[1:]))
        for x in (shard.first, shard.last, shard.rank)
    ]
    arrays += shard.sums or ()
    packed, unpack = exchanges.pack(arrays)
    q, k, v, first, last, rank, *sums = unpack(
        ring.to_zigzag(packed, route.axis_name)
    )
    return shard._replace(
        q=q,
        k=k,
        v=v,
        first=first,
        last=last,
        rank=rank,
        log=None,
        sums=tuple(sums) or None,
    )


def move(way, route, arrays):
    """Float arrays of tokens in the other order, `way` of `ring`."""
    packed, unpack = exchanges.pack_sums(arrays)
    return unpack(way(packed, route.axis_name))


def pack_keys(work):
    """What goes around with the keys, and the way back."""
    return exchanges.pack([work.k, work.v, work.rank, *(work.sums or ())])


def split(plan, route, work):
    """Blocks of a shard's queries, and of its keys."""
    rows = by_part(
        route,
        lambda *x: _softmax_blocks.rows_of(plan, work.k.shape[2], *x),
        (work.q, work.first, work.last, work.sums),
    )
    return rows, keys(
        plan, route, [work.k, work.v, work.rank, *(work.sums or ())]
    )


def keys(plan, route, arrays):
    """Key blocks of what `pack_keys` packed."""
    k, v, rank, *sums = arrays
    return by_part(
        route,
        lambda *x: _softmax_blocks.keys_of(plan, *x),
        (k, v, rank, tuple(sums) or None),
    )


def by_part(route, function, arrays):
    """`function` of each part [B, T/P/U, ...], blocks of all in one axis."""
    size = jax.tree.leaves(arrays)[0].shape[1] // route.parts
    parts = [
        function(
            *jax.tree.map(
                lambda x, i=i: x[:, i * size : (i + 1) * size], arrays
            )
        )
        for i in range(route.parts)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def block(plan, route, x, groups):
    """[B, T/P, H, D] to blocks of all parts."""
    return by_part(
        route, lambda x: _softmax_blocks.block(plan, x, groups), (x,)
    )


def unblock(route, x, shape):
    """[n, B, Hk, G, C, D] of all parts to [B, T/P, H, D]."""
    batch, length, heads, _ = shape
    parts = jnp.split(x, route.parts)
    size = length // route.parts
    parts = [_softmax_blocks.unblock(x, batch, size, heads) for x in parts]
    return jnp.concatenate(parts, axis=1)


def unblock_keys(route, x, shape):
    """[n, B, Hk, C, D] of all parts to [B, T/P, Hk, D]."""
    return unblock(
        route, x[:, :, :, None], (*shape[:2], x.shape[2], x.shape[-1])
    )


def sums_of_keys(route, bars, shape):
    """Cotangents of keys, values and gates side by side: [B, T/P, n]."""
    arrays = [
        unblock_keys(route, bars.k, shape),
        unblock_keys(route, bars.v, shape),
    ]
    if bars.gate is not None:
        arrays.append(unblock(route, bars.gate[..., None], shape)[..., 0])
    return exchanges.pack_sums(arrays)[0]


def unpack_sums(packed, work):
    """The arrays that `sums_of_keys` packed."""
    arrays = [work.k, work.v]
    if work.sums is not None:
        arrays.append(work.sums[0])
    return exchanges.pack_sums(arrays)[1](packed)
