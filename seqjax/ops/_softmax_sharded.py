"""Softmax attention with time sharded: from checked inputs to forms."""

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _softmax_bands
from seqjax.ops import _softmax_chunk
from seqjax.ops import _softmax_context
from seqjax.ops import _softmax_dense
from seqjax.ops import _softmax_gates
from seqjax.ops import _softmax_parts
from seqjax.ops import _softmax_place
from seqjax.ops import _softmax_ring
from seqjax.ops import _softmax_shared_cache
from seqjax.parallel import attention as exchanges
from seqjax.parallel import halo

# Bytes of gathered keys and values up to which one collective is the default.
_GATHERED = 2**25


def run(plan, inputs):
    """Output of a shard, and the next cache where there is one.

    Args:
      plan: `_softmax_xla.Plan` with axis_name.
      inputs: `_softmax_xla.Inputs`, padding masked, all varying over axis_name.
    """
    axis_name = plan.axis_name
    cache, log_decay = inputs.cache, inputs.log_decay
    batch, length = inputs.q.shape[:2]
    if log_decay is not None:
        log_decay = log_decay.astype(plan.accumulate)
    place = _softmax_place.locate(inputs.segment_ids, length, cache, axis_name)
    state = None
    if plan.causal and cache is not None:
        state = _next_state(plan, inputs, log_decay, place)
    gates = None
    if log_decay is not None:
        gates = _softmax_place.gates_of(log_decay, place.tokens, axis_name)
    bands = _softmax_place.bands_of(
        place,
        plan,
        log_decay,
        gates,
        None if cache is None else cache.log_decay,
    )
    size = None if plan.window is None else plan.window - 1
    exchange = exchanges.Exchange(axis_name, size)
    route = None
    if size is not None and place.counts is not None:
        route = halo.route(inputs.segment_ids, place.counts, size, axis_name)
    if batch == 0:
        return jnp.zeros((*inputs.q.shape[:3], inputs.v.shape[-1])), state
    form = _recurrent if plan.form == "recurrent" else _chunk
    return form(plan, inputs, place, gates, bands, exchange, route), state


def _chunk(plan, inputs, place, gates, bands, exchange, route):
    q, k, v, sink = inputs[:4]
    cached = None
    if inputs.cache is not None:
        cached = _cached(inputs.cache, bands)
    shard = _softmax_context.Shard(
        q=q,
        k=k,
        v=v,
        sink=sink,
        first=bands.first,
        last=bands.last,
        rank=place.tokens.rank[..., None],
        log=None if gates is None else gates.log,
        sums=None if gates is None else gates.sums,
        cache=cached,
        route=route,
    )
    shape = (q.shape[0], *shard.rank.shape[1:])
    shard = shard._replace(rank=jnp.broadcast_to(shard.rank, shape))
    shard = _contract.align_inputs({"shard": shard}, plan.axis_name)["shard"]
    ring = _chosen(plan, inputs) == "ring"
    zigzag = ring and plan.causal and _zigzag(plan, q)
    block = plan.block
    if zigzag:
        half = _contract.round_up(q.shape[1] // 2, 16)
        block = min(block, half)
    chunks = _softmax_chunk.Plan(
        block=block,
        cached=0,
        scale=float(plan.scale),
        dtype=plan.accumulate,
        precision=_contract.precision(q, k, v),
    )
    if not ring:
        return _softmax_context.shard_attention(chunks, exchange, shard)
    route = _softmax_parts.Route(plan.axis_name, zigzag)
    return _softmax_ring.ring_attention(chunks, route, shard)


def _chosen(plan, inputs):
    """The exchange: the one asked for, or by the bytes that are gathered."""
    if plan.window is not None:
        return "halo"
    if plan.exchange is not None:
        return plan.exchange
    own = inputs.k.size * inputs.k.dtype.itemsize
    own += inputs.v.size * inputs.v.dtype.itemsize
    gathered = own * jax.lax.axis_size(plan.axis_name)
    return "all_gather" if gathered <= _GATHERED else "ring"


def _zigzag(plan, q):
    """Whether the parts of the ring's work are half-shards."""
    return q.shape[1] % 2 == 0 and jax.lax.axis_size(plan.axis_name) > 1


def _cached(cache, bands):
    slots = cache.k.shape[1]
    rank = bands.rank[:, :slots]
    rank = jnp.broadcast_to(rank, (cache.k.shape[0], *rank.shape[1:]))
    behind = sums = None
    if cache.log_decay is not None:
        behind = _softmax_gates.finite(cache.log_decay)
        sums = (-jax.lax.stop_gradient(behind), -cache.log_decay_low)
    return _softmax_context.Cached(cache.k, cache.v, rank, behind, sums)


def _recurrent(plan, inputs, place, gates, bands, exchange, route):
    """One query after another; any derivative, of the exchange too."""
    q, k, v, sink = inputs[:4]
    dtype, cache = plan.accumulate, inputs.cache
    batch, length = q.shape[:2]
    slots = 0 if cache is None else cache.k.shape[1]
    rank = jnp.broadcast_to(place.tokens.rank, (batch, length))[..., None] + 1
    halves = jnp.concatenate([rank >> 16, rank & 0xFFFF], axis=-1)
    own = [k.astype(dtype), v.astype(dtype), halves.astype(dtype)]
    if gates is not None:
        own.append(gates.log)
    packed, unpack = exchanges.pack_sums(own)
    far_k, far_v, halves, *log = unpack(
        exchanges.fetch(exchange, route, packed)
    )
    early = exchanges.from_earlier(exchange, length)[None, :, None]
    halves = halves.astype(jnp.int32)
    rank = (halves[..., :1] << 16 | halves[..., 1:]) - 1
    if exchange.halo is None:
        here = jnp.arange(rank.shape[1]) // length
        here = here == jax.lax.axis_index(exchange.axis_name)
        rank = jnp.where(here[None, :, None], _softmax_bands.PADDING, rank)
    heads = bands.rank.shape[2]
    rank = jnp.broadcast_to(rank, (*rank.shape[:2], heads))
    mine = jnp.broadcast_to(bands.rank[:, slots:], (batch, length, heads))
    pieces = ((far_k, far_v), (k, v))
    ranks = [rank, mine]
    cached_decay = None
    if gates is not None:
        log = jnp.where(early, log[0], 0)
        sums = _softmax_gates.cumulative(log, reverse=True)
        cached_decay = _shifted(sums[0]), _shifted(sums[1])
    if slots:
        pieces = ((cache.k, cache.v), *pieces)
        first = bands.rank[:, :slots]
        ranks = [jnp.broadcast_to(first, (batch, *first.shape[1:])), *ranks]
        if cached_decay is not None:
            held = _softmax_gates.finite(cache.log_decay), cache.log_decay_low
            held = _softmax_gates.add(held, tuple(x[:, :1] for x in sums))
            cached_decay = (
                jnp.concatenate([held[0], cached_decay[0]], axis=1),
                jnp.concatenate([held[1], cached_decay[1]], axis=1),
            )
    problem = _softmax_dense.Problem(
        q=q.astype(dtype) * plan.scale,
        pieces=pieces,
        sink=None if sink is None else sink.astype(dtype),
        log_decay=None if gates is None else gates.log,
        cached_decay=cached_decay,
        bands=bands._replace(rank=jnp.concatenate(ranks, axis=1)),
    )
    problem = _contract.align_inputs({"all": problem}, plan.axis_name)["all"]
    return _softmax_dense.recurrent(problem, _contract.precision(q, k, v))


def _shifted(sums):
    """Sums behind each token in place of those from it on."""
    return jnp.pad(sums[:, 1:], ((0, 0), (0, 1), (0, 0)))


def _next_state(plan, inputs, log_decay, place):
    cache = inputs.cache
    if plan.state_dtype is not None:
        cache = cache._replace(
            k=cache.k.astype(plan.state_dtype),
            v=cache.v.astype(plan.state_dtype),
        )
    return _softmax_shared_cache.next_state(
        cache, inputs.k, inputs.v, log_decay, place, plan.axis_name
    )
