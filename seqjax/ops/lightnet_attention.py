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
from seqjax.ops import _contract
from seqjax.ops import linear_recurrence

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
        default_chunk=_additive.DEFAULT_CHUNK,
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
            v=v,
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
    log_decay, weight, final_m = _stable_gates(
        k, state.z, segment_ids, axis_name, exchange
    )
    # exp(z - m) of the incoming state: 1, differentiable in z; 0 without one.
    known = ~recurrence.vanishes(state.z)
    z = jnp.where(known, state.z, 0)
    moved = jnp.where(known, jnp.exp(z - jax.lax.stop_gradient(z)), 0)
    total, final_total = linear_recurrence.linear_recurrence(
        weight,
        log_decay,
        initial_state=moved,
        segment_ids=segment_ids,
        axis_name=axis_name,
        exchange=exchange,
        form=form,
    )
    o, kv = _additive.additive(
        _OP,
        # Padding, and nothing else, has no weight at all.
        aligned["q"].astype(dtype) / jnp.where(total == 0, 1, total),
        weight,
        aligned["v"],
        log_decay,
        scale=_additive.check_scale(_OP, scale, shapes["K"]),
        initial=moved[..., None] * state.kv,
        options=_contract.Options(
            segment_ids,
            axis_name,
            exchange,
            form,
            chunk_size if form == "chunk" else None,
            implementation,
        ),
        dtype=dtype,
    )
    empty = final_total == 0
    final_total = jnp.where(empty, 1, final_total)
    z = jnp.where(empty, -jnp.inf, final_m + jnp.log(final_total))
    kv = (kv / final_total[..., None]).astype(state_dtype)
    return o.astype(v.dtype), LightNetState(kv, z)


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


def _stable_gates(k, z, segment_ids, axis_name, exchange):
    """Log decays and weights [B, T, H, K], and the last maximum [B, H, K].

    No result depends on the maxima, so they are constants.
    """
    starts = None
    m, z = jax.lax.stop_gradient((k, z))
    batch, length, heads, key = k.shape
    m = m.reshape(batch, length, heads * key)
    decay = jnp.zeros_like(m)
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)[..., None]
        decay = jnp.where(starts, -jnp.inf, decay)
    maps = recurrence.prefix_maxima(recurrence.MaxPlus(decay, m))
    initial = z.reshape(batch, heads * key)
    if axis_name is not None:
        last = jax.tree.map(lambda x: x[:, -1], maps)
        initial = recurrence.incoming_maximum(
            last, initial, segment_ids, axis_name, exchange
        )
    m = maps.apply(initial[:, None])
    before = jnp.concatenate([initial[:, None], m], axis=1)
    before, final = before[:, :-1], before[:, -1]
    if starts is not None:
        before = jnp.where(starts, -jnp.inf, before)
    if axis_name is not None:
        final = recurrence.last_device(final, axis_name)
    nothing = recurrence.vanishes(before)
    log_decay = jnp.where(
        nothing, -jnp.inf, jnp.where(nothing, 0, before) - m
    ).reshape(k.shape)
    silent = recurrence.vanishes(k)
    m = jnp.where(silent, 0, m.reshape(k.shape))
    weight = jnp.where(silent, 0, jnp.exp(jnp.where(silent, 0, k) - m))
    return log_decay, weight, final.reshape(batch, heads, key)
