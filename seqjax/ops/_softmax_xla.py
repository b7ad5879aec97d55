"""XLA implementation of softmax attention: from checked inputs to forms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _softmax_bands
from seqjax.ops import _softmax_cache
from seqjax.ops import _softmax_chunk
from seqjax.ops import _softmax_dense
from seqjax.ops import _softmax_gates
from seqjax.ops import _softmax_sharded


class Inputs(NamedTuple):
    """Arrays of a call, as `softmax_attention` documents them."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    sink: jax.Array | None
    log_decay: jax.Array | None
    cache: _softmax_cache.AttentionState | None
    segment_ids: jax.Array | None


class Plan(NamedTuple):
    """Static choices of a call."""

    causal: bool
    window: int | None
    scale: float
    form: str
    block: int
    accumulate: Any  # dtype
    state_dtype: Any  # dtype or None
    axis_name: str | None = None
    exchange: str | None = None


def run(plan: Plan, inputs: Inputs):
    """Output and next cache (None where not causal)."""
    masked = {
        name: recurrence.mask_padding(inputs.segment_ids, x)
        for name, x in inputs._asdict().items()
        if name in ("q", "k", "v", "log_decay") and x is not None
    }
    inputs = inputs._replace(**masked)
    inputs = Inputs(**_contract.align_inputs(inputs._asdict(), plan.axis_name))
    if plan.axis_name is not None:
        y, state = _softmax_sharded.run(plan, inputs)
        return y.astype(inputs.v.dtype), state
    cache, log_decay = inputs.cache, inputs.log_decay
    dtype = plan.accumulate
    length = inputs.q.shape[1]
    tokens, segment_ids = _softmax_bands.locate(
        inputs.segment_ids, length, cache
    )
    if log_decay is not None:
        log_decay = log_decay.astype(dtype)
    state = None
    if plan.causal:
        state = _next_state(plan, inputs, log_decay, tokens, segment_ids)
    if _writes_first(plan, inputs):
        y = _decode(plan, inputs, tokens, state)
    else:
        bands = _softmax_bands.bands(
            tokens,
            causal=plan.causal,
            window=plan.window,
            log_decay=log_decay,
            cached_log_decay=None if cache is None else cache.log_decay,
        )
        # Without a row there is nothing to cut into blocks.
        blocks = plan.form == "chunk" and inputs.q.shape[0] > 0
        attend = _chunk if blocks else _dense
        y = jnp.asarray(attend(plan, inputs, log_decay, tokens, bands))
    return y.astype(inputs.v.dtype), state


def _writes_first(plan, inputs):
    """Whether a decode step stores its token first and reads it back.

    In a plain loop XLA then updates the cache in place (inside the scan over
    layers it still copies it); reading the old cache and the new token
    costs two copies of it.  A ring still needs the token it overwrites, and
    reading back must not round.
    """
    cache = inputs.cache
    if cache is None or plan.window is not None or plan.form == "chunk":
        return False
    dtypes = (cache.k.dtype, cache.v.dtype)
    return (
        inputs.q.shape[1] == 1
        and cache.k.shape[1] > 0
        and plan.state_dtype in (None, cache.k.dtype)
        and dtypes == (inputs.k.dtype, inputs.v.dtype)
    )


def _decode(plan, inputs, tokens, state):
    q, sink = inputs.q, inputs.sink
    dtype = plan.accumulate
    ranks = _softmax_bands.last_document(state)[1]
    cached_decay = None
    if state.log_decay is not None:
        cached_decay = _cached_decay(state)
    problem = _softmax_dense.Problem(
        q=q.astype(dtype) * plan.scale,
        pieces=((state.k, state.v),),
        sink=None if sink is None else sink.astype(dtype),
        log_decay=None,
        cached_decay=cached_decay,
        bands=_softmax_bands.stored(tokens, ranks, state.log_decay),
    )
    return _softmax_dense.step(
        problem, _contract.precision(q, inputs.k, inputs.v)
    )


def _dense(plan, inputs, log_decay, tokens, bands):
    dtype = plan.accumulate
    q, k, v, sink = inputs[:4]
    cache = inputs.cache
    pieces, cached_decay = ((k, v),), None
    if cache is not None and cache.k.shape[1] > 0:
        pieces = ((cache.k, cache.v), *pieces)
        if log_decay is not None:
            cached_decay = _cached_decay(cache)
    if log_decay is not None:
        log_decay = _summable(log_decay, tokens)
    problem = _softmax_dense.Problem(
        q=q.astype(dtype) * plan.scale,
        pieces=pieces,
        sink=None if sink is None else sink.astype(dtype),
        log_decay=log_decay,
        cached_decay=cached_decay,
        bands=bands,
    )
    form = _softmax_dense.parallel
    if plan.form == "recurrent" and q.shape[1] > 1:
        form = _softmax_dense.recurrent
    return form(problem, _contract.precision(q, k, v))


def _chunk(plan, inputs, log_decay, tokens, bands):
    q, k, v, sink = inputs[:4]
    cache, block = inputs.cache, plan.block
    cached = 0
    if cache is not None:
        # Empty slots in front align blocks of keys with blocks of queries.
        cached = _contract.round_up(cache.k.shape[1], block)

        def join(old, new, fill=0):
            free = cached - old.shape[1]
            widths = ((0, 0), (free, 0)) + ((0, 0),) * (old.ndim - 2)
            old = jnp.pad(old, widths, constant_values=fill)
            return jnp.concatenate([old, new], axis=1)

        k = join(cache.k, k)
        v = join(cache.v, v)
        free = cached - cache.k.shape[1]
        rank = jnp.pad(
            bands.rank,
            ((0, 0), (free, 0), (0, 0)),
            constant_values=_softmax_bands.PADDING,
        )
        bands = bands._replace(rank=rank)
    gate = None
    if log_decay is not None:
        log_decay = _summable(log_decay, tokens)
        starts = (tokens.rank == tokens.start) & tokens.real
        starts = jnp.broadcast_to(starts, log_decay.shape[:2])
        query = _softmax_gates.cumulative(
            jax.lax.stop_gradient(log_decay), starts
        )
        batch, _, heads = log_decay.shape
        behind = jnp.zeros((batch, cached, heads), log_decay.dtype)
        key = query
        if cache is not None:
            held = _cached_decay(cache)
            behind = join(held[0], log_decay)[:, :cached]
            key = tuple(
                join(-jax.lax.stop_gradient(old), new)
                for old, new in zip(held, query, strict=True)
            )
        gate = _softmax_chunk.Gate(log_decay, behind, query, key)
    chunks = _softmax_chunk.Plan(
        block=block,
        cached=cached,
        scale=float(plan.scale),
        dtype=plan.accumulate,
        precision=_contract.precision(q, k, v),
    )
    arguments = (q, k, v, sink, gate, bands)
    arguments = _contract.align_inputs({"all": arguments}, None)["all"]
    return _softmax_chunk.chunk_attention(chunks, *arguments)


def _summable(log_decay, tokens):
    """Gates that enter sums: not -inf, not padding, not a document's first."""
    opens = tokens.rank == tokens.start
    keep = (tokens.real & ~opens)[..., None]
    return _softmax_gates.finite(log_decay, keep)


def _cached_decay(cache):
    return _softmax_gates.finite(cache.log_decay), cache.log_decay_low


def _next_state(plan, inputs, log_decay, tokens, segment_ids):
    k, v, cache = inputs.k, inputs.v, inputs.cache
    batch, length, heads, key_dim = k.shape
    if cache is None:
        tokens = tokens._replace(
            cached=jnp.full((1, 1), _softmax_bands.PADDING, jnp.int32)
        )
        cache = _softmax_cache.attention_cache(
            batch,
            length,
            heads,
            key_dim,
            v.shape[-1],
            window=plan.window,
            gate_heads=None if log_decay is None else log_decay.shape[2],
            dtype=plan.accumulate,
        )
        cache = cache._replace(
            k=cache.k.astype(k.dtype), v=cache.v.astype(v.dtype)
        )
    if plan.state_dtype is not None:
        cache = cache._replace(
            k=cache.k.astype(plan.state_dtype),
            v=cache.v.astype(plan.state_dtype),
        )
    aligned = _contract.align_inputs({"cache": cache, "like": inputs}, None)
    return _softmax_cache.store(
        aligned["cache"], k, v, log_decay, tokens, segment_ids
    )
