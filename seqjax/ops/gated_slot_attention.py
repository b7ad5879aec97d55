"""Gated slot attention.

Zhang et al., "Gated Slot Attention for Efficient Linear-Time Sequence Modeling"
(arXiv 2409.07146): M slots that are written by weights s and forget by g,

    K_t = K_{t-1} diag(exp(g_t)) + k_t s_t^T      a_t = softmax(scale K_t^T q_t)
    V_t = diag(exp(g_t)) V_{t-1} + s_t v_t^T      o_t = V_t^T a_t

Two gated linear attentions with a softmax in between: the second with gates on
its key channels, the slots, the first with gates on its value channels.  The
chunk form of plain JAX does both at once (`_slot_chunk`).  In other forms, in
kernels, and in a shard, whose first half need not wait for the state in front,
each slot of the first is a value head of width 1 with a gate of its own, and
all slots of a head share q and k, hence their scores.

Time O(T (C log C + K + V) M) a head in chunk form, state (K + V) M floats.
Weak in that slots are few and their weights are chosen without looking at them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _additive_xla
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _slot_chunk
from seqjax.parallel import sequence
from seqjax.parallel import shard_decays

_OP = "gated_slot_attention"
_additive.register(_OP)
# Chunks of 16 and 64 take a third more.
_DEFAULT_CHUNK = 32


class GSAState(NamedTuple):
    """Slots of gated slot attention.

    Attributes:
      k: [B, H, K, M], the keys of the slots.
      v: [B, H, M, V], their values.
    """

    k: jax.Array
    v: jax.Array


def gated_slot_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    s: jax.Array,
    log_decay: jax.Array,
    *,
    scale: float | None = None,
    initial_state: GSAState | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, GSAState]:
    """Attention over M slots that are written and forgotten by gates.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      s: [B, T, H, M], how much of the token each slot takes; 1 - exp(log_decay)
        as published.
      log_decay: [B, T, H, M], natural logarithm of each slot's decay, <= 0,
        -inf allowed.
      scale: factor of q, default K**-0.5.
      initial_state: `GSAState`, default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode; parallel
        holds T x T decays a slot.
      chunk_size: tokens a chunk, default 32; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (o [B, T, H, V] in the dtype of v, `GSAState`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _additive.check_heads(_OP, q, k, v, None, segment_ids)
    shapes.bind("s", s, "B T H M")
    shapes.bind("log_decay", log_decay, "B T H M")
    state = _check_state(shapes, initial_state)
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        s=s,
        log_decay=log_decay,
        **{} if state is None else {"initial_state": state.k, "slots": state.v},
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    options = _contract.Options(
        segment_ids, axis_name, exchange, form, chunk_size, implementation
    )
    form, chunk_size = _contract.choose_form(
        _OP,
        options,
        length=shapes["T"],
        recurrent_up_to=_additive.RECURRENT_UP_TO,
        default_chunk=_DEFAULT_CHUNK,
    )
    scale = _additive.check_scale(_OP, scale, shapes["K"])
    precision = _contract.precision(q, k, v)
    entered = None
    fused = (
        form == "chunk"
        and axis_name is None
        and _in_plain_jax(options, s, v, log_decay, chunk_size)
    )
    if fused or axis_name is not None:
        aligned = _aligned(
            q, k, v, s, log_decay, segment_ids, state, axis_name, dtype
        )
        q, k, v, s = (aligned[name] for name in "qkvs")
        log_decay, state = aligned["log_decay"], aligned["state"]
        segment_ids = aligned["segment_ids"]
    if fused:
        o, state = _chunked(
            dict(q=q, k=k, v=v, s=s, log_decay=log_decay),
            state,
            segment_ids,
            chunk_size=chunk_size,
            scale=scale,
            dtype=dtype,
            precision=precision,
        )
        return o.astype(v.dtype), GSAState(
            state.k.astype(state_dtype), state.v.astype(state_dtype)
        )
    if axis_name is not None:
        entered = _enter(
            k, v, s, log_decay, segment_ids, state, precision, options
        )
        state = None  # a shard starts from nothing
    run = functools.partial(
        _additive.additive,
        _OP,
        options=options._replace(
            segment_ids=segment_ids,
            axis_name=None,
            exchange=None,
            form=form,
            chunk_size=chunk_size if form == "chunk" else None,
        ),
        dtype=dtype,
    )
    batch, length, heads, slots = s.shape
    logits, keys = run(
        q,
        k,
        s.reshape(batch, length, heads * slots, 1),
        log_decay.reshape(batch, length, heads * slots),
        scale=scale,
        initial=None if state is None else _heads_of_slots(state.k),
    )
    logits = logits.reshape(s.shape)
    if entered is not None:
        read = sequence.read(q, None, entered.state.k, precision)
        logits = logits + scale * entered.head * read
    weights = jax.nn.softmax(logits, axis=-1)
    o, values = run(
        weights,
        s,
        v,
        log_decay,
        scale=1.0,
        initial=None if state is None else state.v,
    )
    if entered is None:
        keys = keys.reshape(batch, heads, slots, shapes["K"]).swapaxes(2, 3)
        state = GSAState(keys, values)
    else:
        weights = recurrence.mask_padding(segment_ids, weights)
        o = o + sequence.read(weights, entered.head, entered.state.v, precision)
        state = entered.final
    return o.astype(v.dtype), GSAState(
        state.k.astype(state_dtype), state.v.astype(state_dtype)
    )


def _in_plain_jax(options, s, v, log_decay, chunk_size):
    """Whether no kernel takes the second half."""
    run = _dispatch.choose(
        _OP,
        options.implementation,
        form="chunk",
        chunk_size=chunk_size,
        q=s,
        k=s,
        v=v,
        log_decay=log_decay,
        segment_ids=options.segment_ids,
        initial=log_decay,
    )
    return run is _additive_xla.run


def _chunked(
    inputs, state, segment_ids, *, chunk_size, scale, dtype, precision
):
    """(o, `GSAState`) of aligned inputs and the state in front of them."""
    key, v = state.k.shape[2], inputs["v"]
    if v.size == 0:
        return jnp.zeros(v.shape, dtype), state
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    plan = _slot_chunk.make_plan(
        v, chunk_size=chunk_size, scale=scale, dtype=dtype, precision=precision
    )
    initial = jnp.concatenate([state.k.swapaxes(2, 3), state.v], axis=-1)
    made: Any = _slot_chunk.slot_chunk(plan, inputs, starts, initial)
    o, both = made
    keys, values = jnp.split(both, [key], axis=-1)
    o = recurrence.mask_padding(segment_ids, o)
    return o, GSAState(keys.swapaxes(2, 3), values)


def _aligned(q, k, v, s, log_decay, segment_ids, state, axis_name, dtype):
    """All inputs varying over the mesh, padding masked out."""
    if state is None:
        batch, heads, slots = s.shape[0], *s.shape[2:]
        state = GSAState(
            jnp.zeros((batch, heads, k.shape[-1], slots), dtype),
            jnp.zeros((batch, heads, slots, v.shape[-1]), dtype),
        )
    mask = functools.partial(recurrence.mask_padding, segment_ids)
    return _contract.align_inputs(
        dict(
            q=mask(q),
            k=mask(k),
            v=mask(v),
            s=mask(s),
            log_decay=mask(log_decay.astype(dtype)),
            segment_ids=segment_ids,
            state=jax.tree.map(lambda x: x.astype(dtype), state),
        ),
        axis_name,
    )


class _Entered(NamedTuple):
    head: jax.Array  # [B, T/P, H, M], decay from in front of the shard
    state: GSAState  # in front of the shard
    final: GSAState  # behind the whole sequence


def _enter(k, v, s, log_decay, segment_ids, state, precision, options):
    """Exchanges the maps of both recurrences as one.

    What they write does not depend on what is read: with slots for keys and
    (k, v) for values, both are one additive rule.
    """
    dtype = state.k.dtype
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    k = jnp.repeat(k.astype(dtype), s.shape[2] // k.shape[2], axis=2)
    head, total = shard_decays.decay_from_start(log_decay, starts, dtype)
    assert head is not None  # there is a decay
    tail = shard_decays.decay_to_end(log_decay, starts, dtype)
    written = jnp.concatenate([k, v.astype(dtype)], axis=-1)
    affine = recurrence.Affine(
        total, sequence.write(s, written, tail, dtype, precision)
    )
    both = recurrence.incoming_state(
        affine,
        jnp.concatenate([state.k.swapaxes(2, 3), state.v], axis=-1),
        segment_ids,
        options.axis_name,
        options.exchange,
    )
    final = recurrence.last_device(affine.apply(both), options.axis_name)

    def split(both):
        keys, values = jnp.split(both, [k.shape[-1]], axis=-1)
        return GSAState(keys.swapaxes(2, 3), values)

    return _Entered(head, split(both), split(final))


def _check_state(shapes, state):
    if state is None:
        return None
    if not isinstance(state, tuple) or len(state) != 2:
        raise ValueError(
            f"{_OP}: initial_state must be GSAState(k [B, H, K, M],"
            f" v [B, H, M, V]) or None, got {type(state)}"
        )
    shapes.bind("initial_state.k", state[0], "B H K M")
    shapes.bind("initial_state.v", state[1], "B H M V")
    return GSAState(*state)


def _heads_of_slots(keys):
    """[B, H, K, M] to [B, H M, K, 1]."""
    batch, heads, key, slots = keys.shape
    return keys.swapaxes(2, 3).reshape(batch, heads * slots, key, 1)
