"""Ring form of softmax attention on a shard of the sequence.

Li et al., "Sequence Parallelism" (2021), arXiv:2105.13120; online softmax: Liu
et al., "Ring Attention" (2023), arXiv:2310.01889; balanced order: Brandon et
al., "Striped Attention" (2023), arXiv:2311.09431, here in halves (zigzag).

Keys and values go around the devices, P - 1 messages, and every device sweeps
over what is with it while the next is on its way.  Backward they go around once
more, followed one step behind by the sums of their cotangents, which come home
with the last of P messages.  Nothing of full length is ever held: memory for
the backward pass is inputs, output and logarithms of the shard's denominators.

Where all shards have an even number of tokens and attention is causal, the work
is in zigzag order (`seqjax.parallel.ring`), else in contiguous shards.

The cotangent of a gate is the sum of dS_ij over i >= l > j, also for i and j on
other devices: the sweeps give the pairs of which one is with the gate, and the
sums of dS between whole parts give the rest, in one small reduce-scatter.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax.ops import _softmax_blocks
from seqjax.ops import _softmax_parts
from seqjax.ops import _softmax_sweep
from seqjax.parallel import ring


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring_attention(plan, route: _softmax_parts.Route, shard) -> jax.Array:
    """Softmax attention [B, T/P, H, V] in the accumulation dtype.

    Args:
      plan: `_softmax_chunk.Plan`.
      route: static choices.
      shard: `_softmax_context.Shard`.

    Returns:
      y; differentiable once, in reverse mode.
    """
    return _forward(plan, route, shard)[0]


def _forward(plan, route, shard):
    work = _softmax_parts.to_work(route, shard)
    rows, own = _softmax_parts.split(plan, route, work)
    devices = jax.lax.axis_size(route.axis_name)
    packed, unpack = _softmax_parts.pack_keys(work)

    def sweep(carry, packed):
        keys = _softmax_parts.keys(plan, route, unpack(packed))
        return _softmax_sweep.forward(plan, rows, keys, carry)

    if devices > 1:
        packed = ring.rotate(packed, route.axis_name)
    carry = _softmax_sweep.start(
        plan, shard.sink, rows.q.shape[1:-1], shard.v.shape[-1], shard
    )
    carry = _softmax_sweep.forward(plan, rows, own, carry, shared=True)
    if shard.cache is not None:
        carry = _softmax_sweep.forward(plan, rows, _cache(plan, shard), carry)
    if devices > 1:

        def step(state, _):
            packed, carry = state
            coming = ring.rotate(packed, route.axis_name)
            return (coming, sweep(carry, packed)), None

        (packed, carry), _ = jax.lax.scan(
            step, (packed, carry), length=devices - 2
        )
        carry = sweep(carry, packed)
    out, lse = _softmax_sweep.finish(carry)
    y = _softmax_parts.unblock(route, out, work.q.shape)
    if route.zigzag:
        y = _softmax_parts.move(ring.from_zigzag, route, [y])[0]
    return y, (work, y, lse)


def _backward(plan, route, residual, y_bar):
    work, y, lse = residual
    shape = work.q.shape
    groups = work.k.shape[2]
    gated = work.sums is not None
    sink = work.sink is not None
    devices = jax.lax.axis_size(route.axis_name)
    inner = jnp.sum(y_bar * y, axis=-1)  # dO . O
    if route.zigzag:
        y_bar, inner = _softmax_parts.move(
            ring.to_zigzag, route, [y_bar, inner]
        )
    outer = _softmax_sweep.Outer(
        _softmax_parts.block(plan, route, y_bar, groups),
        _softmax_parts.block(plan, route, inner[..., None], groups)[..., 0],
        lse,
    )
    rows, own = _softmax_parts.split(plan, route, work)
    packed, unpack = _softmax_parts.pack_keys(work)

    def sweep(packed):
        keys = _softmax_parts.keys(plan, route, unpack(packed))
        bars = _softmax_sweep.backward(
            plan, rows, outer, keys, diagonal=None, sink=sink
        )
        return bars, _softmax_parts.sums_of_keys(route, bars, shape)

    if devices > 1:
        packed = ring.rotate(packed, route.axis_name)
    near = _softmax_sweep.backward(
        plan, rows, outer, own, diagonal=0, sink=sink
    )
    mine = ring.units(route.axis_name, route.zigzag)
    between = None
    if gated:
        between = _first_of_second(near, route) * _open(
            route, mine[0], mine[-1]
        )
    zeros = None if near.rows is None else jnp.zeros_like(near.rows)
    total = _softmax_sweep.varying_like((near.q, zeros, between), work)
    cache_bar = None
    if work.cache is not None:
        bars = _softmax_sweep.backward(
            plan, rows, outer, _cache(plan, work), diagonal=None, sink=sink
        )
        before = jnp.full_like(mine, -1)
        total = _add(route, total, bars, mine, before)
        cache_bar = _cache_bar(work, bars)
    home = _softmax_parts.sums_of_keys(route, near, shape)
    if devices > 1:

        def visit(total, packed, hops):
            bars, sums = sweep(packed)
            device = jax.lax.axis_index(route.axis_name) - hops
            theirs = ring.units(route.axis_name, route.zigzag, device % devices)
            return _add(route, total, bars, mine, theirs), sums

        def step(state, hops):
            packed, unsent, total = state
            coming = ring.rotate(packed, route.axis_name)
            arrived = ring.rotate(unsent, route.axis_name)
            total, sums = visit(total, packed, hops)
            return (coming, arrived + sums, total), None

        unsent = _softmax_sweep.varying_like(jnp.zeros_like(home), work)
        state = (packed, unsent, total)
        hops = jnp.arange(1, devices - 1)
        (packed, unsent, total), _ = jax.lax.scan(step, state, hops)
        arrived = ring.rotate(unsent, route.axis_name)
        total, sums = visit(total, packed, devices - 1)
        home += ring.rotate(arrived + sums, route.axis_name)
    q_bar, row_sums, between = total
    q_bar = plan.scale * _softmax_parts.unblock(route, q_bar, shape)
    bars = [q_bar, *_softmax_parts.unpack_sums(home, work)]
    if gated:
        bars[3] += _inside(route, row_sums, shape)
        bars[3] += _spread(route, between, shape)
    if route.zigzag:
        bars = _softmax_parts.move(ring.from_zigzag, route, bars)
    shard_bar = work._replace(
        q=bars[0].astype(work.q.dtype),
        k=bars[1].astype(work.k.dtype),
        v=bars[2].astype(work.v.dtype),
        sink=_softmax_sweep.sink_bar(plan, work.sink, outer) if sink else None,
        first=None,
        last=None,
        rank=None,
        log=bars[3] if gated else None,
        sums=None,
        cache=cache_bar,
        route=None,
    )
    return (shard_bar,)


ring_attention.defvjp(_forward, _backward)


def _cache(plan, shard):
    cache = shard.cache
    return _softmax_blocks.keys_of(
        plan, cache.k, cache.v, cache.rank, cache.sums
    )


def _cache_bar(work, bars):
    cache = work.cache
    batch, slots = cache.k.shape[:2]
    behind = None
    if work.sums is not None:
        behind = _softmax_blocks.unblock_gates(bars.columns, batch, slots)
    k = _softmax_blocks.unblock_keys(bars.k, batch, slots)
    v = _softmax_blocks.unblock_keys(bars.v, batch, slots)
    return cache._replace(
        k=k.astype(cache.k.dtype),
        v=v.astype(cache.v.dtype),
        rank=None,
        behind=behind,
        sums=None,
    )


# Gates of a part between the part of a query and that of a key: the sum of dS
# over both parts is the same for all of them.


def _add(route, total, bars, mine, theirs):
    """Adds a sweep of parts `mine` over parts `theirs`, int32 [U] both."""
    q, rows, between = total
    q = q + bars.q
    if rows is None:
        return q, rows, between
    # Of the parts in front of a query's the nearer; its keys' sums are in.
    nearest = [
        jnp.where(theirs[-1] < part, theirs[-1], theirs[0]) for part in mine
    ]
    parts = jnp.split(bars.rows, route.parts)
    for part, near, sums in zip(mine, nearest, parts, strict=True):
        between += jnp.sum(sums, axis=(0, 4))[None] * _open(route, near, part)
    if route.zigzag:
        inside = _open(route, theirs[0], theirs[1])
        between += _first_of_second(bars, route) * inside
    return q, rows + bars.rows, between


def _open(route, low, high):
    """1 for the parts between two, else 0: [U P, 1, 1, 1]."""
    count = route.parts * jax.lax.axis_size(route.axis_name)
    part = jnp.arange(count)[:, None, None, None]
    return ((part > low) & (part < high)).astype(jnp.float32)


def _first_of_second(bars, route):
    """Sum of dS over keys of the first part and queries behind the second.

    It is the cotangent of the second part's first gate, of these keys.
    """
    if not route.zigzag:
        return jnp.zeros_like(bars.gate[:1, ..., 0])
    half = bars.gate.shape[0] // 2
    return bars.gate[half : half + 1, ..., 0]


def _inside(route, rows, shape):
    """For gates: sums of dS over queries of the part that are not before."""
    sums = _softmax_parts.unblock(route, rows[..., None], shape)[..., 0]
    sums = sums.reshape(shape[0], route.parts, -1, shape[2])
    sums = jax.lax.cumsum(sums, axis=2, reverse=True)
    return sums.reshape(shape[:3])


def _spread(route, between, shape):
    """Sums of all devices for this device's parts: [B, T/P, H]."""
    devices = jax.lax.axis_size(route.axis_name)
    table = jnp.stack(
        [
            ring.units(route.axis_name, route.zigzag, jnp.asarray(d))
            for d in range(devices)
        ]
    )
    own = jax.lax.psum_scatter(
        between[table], route.axis_name, scatter_dimension=0, tiled=False
    )
    own = own.reshape(route.parts, shape[0], shape[2]).swapaxes(0, 1)
    return jnp.repeat(own, shape[1] // route.parts, axis=1)
