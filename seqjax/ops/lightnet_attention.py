"""LightNet's additive recurrence: a softmax over the past in every key channel.

Qin et al., "You Only Scan Once: Efficient Multi-dimension Sequential Modeling
with LightNet" (arXiv 2405.21022):

    z_t = log sum over j <= t of exp(k_j)       for each key channel
    S_t = sum over j <= t of exp(k_j - z_t) v_j^T       o_t = scale S_t^T q_t

It is gated linear attention with channel gates z_{t-1} - z_t and keys
exp(k_t - z_t).  Here the gates come from the running maximum m instead,
m_{t-1} - m_t and exp(k_t - m_t), with r = exp(z - m) a recurrence of its own
and q divided by it: m is one of the keys, so no gate is a difference of rounded
logarithms, and no exponential exceeds 1 however large the keys.

Time O(T (C log C + V) K) a head in chunk form, state K V + K floats.  Weak in
that nothing is forgotten but by being outweighed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _additive_xla
from seqjax.ops import _contract
from seqjax.ops import linear_recurrence
from seqjax.parallel import sequence
from seqjax.parallel import shard_decays
from seqjax.parallel import stabilised

_OP = "lightnet_attention"
_additive.register(_OP)


class LightNetState(NamedTuple):
    """Weighted means of the values and the logarithms of their weights.

    Attributes:
      kv: [B, H, K, V].
      z: [B, H, K], running logsumexp of the keys, always in the dtype of
        accumulation; -inf before any token.
    """

    kv: jax.Array
    z: jax.Array


def lightnet_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float | None = None,
    initial_state: LightNetState | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, LightNetState]:
    """Linear attention whose keys are a prefix softmax over time.

    Args:
      q: [B, T, H, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, H, K], logarithms of the weights, of any finite size.
      v: [B, T, H, V].
      scale: factor of q, default K**-0.5.
      initial_state: `LightNetState`, default empty: zeros, with z = -inf.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode; parallel
        holds T x T decays a channel.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned kv, default float32 (float64).

    Returns:
      (o [B, T, H, V] in the dtype of v, `LightNetState`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    shapes.bind("q", q, "B T H K")
    shapes.bind("k", k, "B T H K")
    shapes.bind("v", v, "B T H V")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    state = _check_state(shapes, initial_state)
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        **{} if state is None else {"initial_state": state.kv, "z": state.z},
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
        default_chunk=_additive_xla.DEFAULT_CHUNK,
    )
    if state is None:
        batch, heads, key, value = (shapes[letter] for letter in "BHKV")
        state = LightNetState(
            jnp.zeros((batch, heads, key, value), dtype),
            jnp.full((batch, heads, key), -jnp.inf, dtype),
        )
    aligned = _contract.align_inputs(
        dict(
            q=recurrence.mask_padding(segment_ids, q),
            k=k,
            v=recurrence.mask_padding(segment_ids, v),
            segment_ids=segment_ids,
            state=jax.tree.map(lambda x: x.astype(dtype), state),
        ),
        axis_name,
    )
    segment_ids, state = aligned["segment_ids"], aligned["state"]
    k = aligned["k"].astype(dtype)
    if segment_ids is not None:
        real = (segment_ids != recurrence.PADDING)[..., None, None]
        k = jnp.where(real, k, -jnp.inf)
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    # exp(z - m) of the incoming state: 1, differentiable in z; 0 without one.
    first_m = jax.lax.stop_gradient(state.z)
    known = ~recurrence.vanishes(first_m)
    first_total = jnp.where(known, jnp.exp(recurrence.moved(state.z)), 0)
    first = first_m, (first_total[..., None] * state.kv, first_total)
    # A shard starts from nothing, whatever was before it.
    entry = first if axis_name is None else _nothing(first)
    gates = _stable_gates(k, entry[0], starts)
    total, final_total = linear_recurrence.linear_recurrence(
        gates.weight,
        gates.log_decay,
        initial_state=entry[1][1],
        segment_ids=segment_ids,
        form=form,
    )
    scale = _additive.check_scale(_OP, scale, shapes["K"])
    precision = _contract.precision(q, k, v)
    q, entered = aligned["q"].astype(dtype), None
    if axis_name is not None:
        entered = _enter(
            gates,
            aligned["v"],
            final_total,
            first,
            segment_ids,
            precision,
            options,
        )
        total = entered.kept * total + entered.head * entered.sums[1][:, None]
    # Padding, and nothing else, has no weight at all.
    q = q / jnp.where(total == 0, 1, total)
    prepared = _additive.prepare(
        _OP,
        q if entered is None else entered.kept * q,
        gates.weight,
        aligned["v"],
        gates.log_decay,
        scale=scale,
        initial=entry[1][0],
        options=options._replace(
            segment_ids=segment_ids,
            form=form,
            chunk_size=chunk_size if form == "chunk" else None,
        ),
        dtype=dtype,
    )
    o, kv = prepared.run()
    if entered is None or axis_name is None:
        state = _state(gates.m[:, -1], kv, final_total)
    else:
        kv = entered.sums[0]
        o = o + scale * sequence.read(q, entered.head, kv, precision)
        m, (kv, final_total) = entered.final
        state = recurrence.last_device(_state(m, kv, final_total), axis_name)
    kv = state.kv.astype(state_dtype)
    return o.astype(v.dtype), state._replace(kv=kv)


def _check_state(shapes, state):
    if state is None:
        return None
    if not isinstance(state, tuple) or len(state) != 2:
        raise ValueError(
            f"{_OP}: initial_state must be LightNetState(kv [B, H, K, V],"
            f" z [B, H, K]) or None, got {type(state)}"
        )
    shapes.bind("initial_state.kv", state[0], "B H K V")
    shapes.bind("initial_state.z", state[1], "B H K")
    return LightNetState(*state)


def _nothing(state):
    """The empty state in the shapes of another (m, sums)."""
    m, sums = state
    return jnp.full_like(m, -jnp.inf), jax.tree.map(jnp.zeros_like, sums)


class _Gates(NamedTuple):
    maps: recurrence.MaxPlus  # of m, until each token
    starts: jax.Array | None
    log_decay: jax.Array  # [B, T, H, K], like those below
    weight: jax.Array
    m: jax.Array


def _stable_gates(k, first_m, starts):
    """Log decays and weights behind the maximum `first_m` [B, H, K].

    No result depends on the maxima, so they are constants.
    """
    batch, length, heads, key = k.shape
    gate = jax.lax.stop_gradient(k).reshape(batch, length, heads * key)
    decay = jnp.zeros_like(gate)
    if starts is not None:
        decay = jnp.where(starts[..., None], -jnp.inf, decay)
    maps = recurrence.prefix_maxima(recurrence.MaxPlus(decay, gate))
    maps = jax.tree.map(lambda x: x.reshape(k.shape), maps)
    before, m = recurrence.running_maxima(maps, first_m, starts)
    log_decay = recurrence.log_keep(None, before, m)
    weight = recurrence.stable_weight(k, m)
    return _Gates(maps, starts, log_decay, weight, m)


def _enter(gates, v, total, first, segment_ids, precision, options):
    """How the state in front of a shard enters it."""
    dtype = total.dtype
    tail = shard_decays.decay_to_end(gates.log_decay, gates.starts, dtype)
    kv = sequence.write(gates.weight, v, tail, dtype, precision)
    zeros = None
    if gates.starts is not None:
        zeros = jnp.any(gates.starts, axis=1)
    own = recurrence.Stabilised(
        recurrence.Decay(None, zeros), None, gates.m[:, -1], (kv, total)
    )
    return stabilised.enter(
        own,
        first,
        gates.maps,
        None,
        segment_ids,
        axis_name=options.axis_name,
        exchange=options.exchange,
    )


def _state(m, kv, total):
    """Sums relative to exp(m) as a mean and the logarithm of its weight."""
    empty = total == 0
    total = jnp.where(empty, 1, total)
    z = jnp.where(empty, -jnp.inf, m + jnp.log(total))
    return LightNetState(kv / total[..., None], z)
