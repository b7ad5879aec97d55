"""mLSTM: linear attention with an exponential input gate and a normaliser.

Beck et al., "xLSTM: Extended Long Short-Term Memory" (arXiv 2405.04517):

    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T,  n_t the same with v = 1
    h_t = scale C_t^T q_t / (max(|scale n_t . q_t|, 1) + 1e-6 exp(m_t))

exp(i) overflows, so C and n are kept divided by exp(m), m the running maximum
m_t = max(log sigmoid(f_t) + m_{t-1}, i_t).  With m known this is the additive
rule with log decay log sigmoid(f_t) + m_{t-1} - m_t <= 0 and values scaled by
exp(i_t - m_t) <= 1, and n is one more value channel.  But for the 1e-6, h does
not depend on m: gradients take m as a constant, and that one term apart.

Time O(T (C + K) V) a head in chunk form, state K V + K + 1 floats.  Weak like
every additive rule at rewriting what a key stores; the normaliser is signed and
may come close to zero, where h is ill conditioned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _contract
from seqjax.parallel import stabilised

_OP = "mlstm"
_EPSILON = 1e-6
_additive.register(_OP)


class MLSTMState(NamedTuple):
    """State of the mLSTM; the cell is C exp(m), its normaliser n exp(m).

    Attributes:
      C: [B, H, K, V].
      n: [B, H, K].
      m: [B, H], the running maximum, always in the dtype of accumulation; -inf
        before any token.
    """

    C: jax.Array
    n: jax.Array
    m: jax.Array


def mlstm(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    input_gate: jax.Array,
    forget_gate: jax.Array,
    *,
    scale: float | None = None,
    initial_state: MLSTMState | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, MLSTMState]:
    """Matrix memory with exponential input and sigmoid forget gates.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      input_gate: [B, T, H], before its exponential, of any finite size; -inf
        writes nothing.
      forget_gate: [B, T, H], before its sigmoid; -inf forgets everything.
      scale: factor of q, default K**-0.5.
      initial_state: `MLSTMState`, default empty: zeros, with m = -inf.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of C and n returned, default float32 (float64).

    Returns:
      (h [B, T, H, V] in the dtype of v, `MLSTMState`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _additive.check_heads(_OP, q, k, v, None, segment_ids)
    shapes.bind("input_gate", input_gate, "B T H")
    shapes.bind("forget_gate", forget_gate, "B T H")
    state = _check_state(shapes, initial_state)
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        input_gate=input_gate,
        forget_gate=forget_gate,
        **{f"initial_state.{x}": y for x, y in state._asdict().items()}
        if state
        else {},
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    options = _contract.Options(
        segment_ids, axis_name, exchange, form, chunk_size, implementation
    )
    _contract.check_axis(_OP, axis_name, exchange, form)
    if state is None:
        state = _empty_state(shapes, dtype)
    aligned = _contract.align_inputs(
        dict(
            q=q,
            k=k,
            v=recurrence.mask_padding(segment_ids, v),
            input_gate=input_gate,
            forget_gate=forget_gate,
            segment_ids=segment_ids,
            state=jax.tree.map(lambda x: x.astype(dtype), state),
        ),
        axis_name,
    )
    segment_ids, state = aligned["segment_ids"], aligned["state"]
    log_forget, gate = _log_gates(
        aligned["forget_gate"].astype(dtype),
        aligned["input_gate"].astype(dtype),
        segment_ids,
    )
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    maps = _maxima(log_forget, gate, starts)
    # A shard starts from nothing, whatever was before it.
    entry = state.m
    if axis_name is not None:
        entry = jnp.full_like(entry, -jnp.inf)
    before, m = recurrence.running_maxima(maps, entry, starts)

    # The normaliser is one more value channel, constantly 1.
    weight = recurrence.stable_weight(gate, m)[..., None]
    values = weight * aligned["v"].astype(dtype)
    values = jnp.concatenate([values, weight], axis=-1)
    start = jnp.concatenate([state.C, state.n[..., None]], axis=-1)
    start = jnp.exp(recurrence.moved(state.m))[..., None, None] * start
    scale = _additive.check_scale(_OP, scale, shapes["K"])
    prepared = _additive.prepare(
        _OP,
        aligned["q"],
        aligned["k"],
        values,
        recurrence.log_keep(log_forget, before, m),
        scale=scale,
        initial=start,
        options=options._replace(segment_ids=segment_ids),
        dtype=dtype,
    )
    if axis_name is None:
        y, cell = prepared.run()
        final_m = m[:, -1]
    else:
        inputs: dict[str, Any] = dict(prepared.inputs)
        inputs["initial"] = state.m, start
        y, m, (final_m, cell) = stabilised.shard_stabilised(
            prepared.local,
            **inputs,
            maps=maps,
            true_decay=log_forget,
            scale=scale,
            precision=prepared.precision,
            axis_name=axis_name,
            exchange=exchange,
        )
    # Of slices, the cotangents would be padded and added; of a split, joined.
    above, normalizer = jax.lax.split(y, (shapes["V"], 1), axis=-1)
    h = _normalise(above, normalizer[..., 0], m)
    cell = jnp.exp(-recurrence.moved(final_m))[..., None, None] * cell
    cell = cell.astype(state_dtype)
    return h.astype(v.dtype), MLSTMState(cell[..., :-1], cell[..., -1], final_m)


def _check_state(shapes, state):
    if state is None:
        return None
    if not isinstance(state, tuple) or len(state) != 3:
        raise ValueError(
            f"{_OP}: initial_state must be MLSTMState(C [B, H, K, V],"
            f" n [B, H, K], m [B, H]) or None, got {type(state)}"
        )
    state = MLSTMState(*state)
    shapes.bind("initial_state.C", state.C, "B H K V")
    shapes.bind("initial_state.n", state.n, "B H K")
    shapes.bind("initial_state.m", state.m, "B H")
    return state


def _empty_state(shapes, dtype):
    batch, heads, key, value = (shapes[letter] for letter in "BHKV")
    return MLSTMState(
        jnp.zeros((batch, heads, key, value), dtype),
        jnp.zeros((batch, heads, key), dtype),
        jnp.full((batch, heads), -jnp.inf, dtype),
    )


def _log_gates(forget, gate, segment_ids):
    """log sigmoid(f) and i; padding neither forgets nor writes."""
    if segment_ids is None:
        return jax.nn.log_sigmoid(forget), gate
    real = (segment_ids != recurrence.PADDING)[..., None]
    log_forget = jax.nn.log_sigmoid(jnp.where(real, forget, 0))
    return jnp.where(real, log_forget, 0), jnp.where(real, gate, -jnp.inf)


def _maxima(log_forget, gate, starts):
    """The maps of m from in front of all tokens until each of them."""
    decay = log_forget
    if starts is not None:
        decay = jnp.where(starts[..., None], -jnp.inf, decay)
    return recurrence.prefix_maxima(recurrence.MaxPlus(decay, gate))


def _normalise(y, normalizer, m):
    """h from stabilised numerator and normaliser: both times exp(min(m, 0)).

    max(|n q|, exp(-m)) + 1e-6 overflows for m < -88; scaled it is at most 1
    beside a bounded |n q|.
    """
    still = jax.lax.stop_gradient(m)
    scale = jnp.exp(jnp.minimum(still, 0))
    floor = jnp.exp(-jnp.maximum(still, 0))
    below = jnp.maximum(jnp.abs(normalizer) * scale, floor)
    below += _EPSILON * scale * jnp.exp(recurrence.moved(m))
    return (scale / below)[..., None] * y
