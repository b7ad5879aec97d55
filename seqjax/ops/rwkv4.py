"""RWKV-4's time mixing: a running weighted average with exponential weights.

Peng et al., "RWKV: Reinventing RNNs for the Transformer Era"
(arXiv 2305.13048), "WKV":

    o_t = (N_{t-1} + exp(u + k_t) v_t) / (Z_{t-1} + exp(u + k_t))
    N_t = exp(w) N_{t-1} + exp(k_t) v_t,    Z_t the same with v = 1

Every channel on its own.  Time O(1) a channel and token, state 3 D floats.
Weak in that the decays are constants and nothing is addressed: a channel is one
moving average, whose weights the current token cannot change afterwards.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _rwkv4_forms

_OP = "rwkv4"
_RECURRENT_UP_TO = 4
_DEFAULT_CHUNK = 64
RWKV4State = _rwkv4_forms.RWKV4State


def rwkv4(
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    bonus: jax.Array,
    *,
    initial_state: RWKV4State | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, RWKV4State]:
    """Average of values with weights exp(k) that decay, the newest one apart.

    The running maximum is rounded at every token, and num and den carry what it
    loses: a factor of up to exp(K eps / 2), K the largest |k| or |max|.  Where
    the maximum only decays, no new k near it, these multiply up.  The sums keep
    in range up to K T = 1e9 (float64: 1e17); beyond, num and den can overflow
    or vanish, and o and the gradients be NaN.

    Args:
      k: [B, T, D] float16, bfloat16, float32 or (all inputs) float64: logarithm
        of the weights, finite; see above for how large.
      v: [B, T, D].
      log_decay: [D], natural logarithm of the decay a token, <= 0, -inf
        allowed; -exp(time_decay) in RWKV's checkpoints.
      bonus: [D], added to the current token's k; time_first in checkpoints.
      initial_state: `RWKV4State`, default empty: zeros, with max = -inf.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`;
        the shard is walked twice.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode; parallel
        holds T x T weights a channel.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of num and den returned, default float32 (float64).

    Returns:
      (o [B, T, D] in the dtype of v, `RWKV4State`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    shapes.bind("k", k, "B T D")
    shapes.bind("v", v, "B T D")
    shapes.bind("log_decay", log_decay, "D")
    shapes.bind("bonus", bonus, "D")
    state = _check_state(shapes, initial_state)
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP,
        k=k,
        v=v,
        log_decay=log_decay,
        bonus=bonus,
        **{f"initial_state.{n}": x for n, x in state._asdict().items()}
        if state
        else {},
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    options = _contract.Options(
        segment_ids, axis_name, exchange, form, chunk_size, implementation
    )
    form, chunk_size = _contract.choose_form(
        _OP,
        options,
        length=shapes["T"],
        recurrent_up_to=_RECURRENT_UP_TO,
        default_chunk=_DEFAULT_CHUNK,
    )
    if state is None:
        zeros = jnp.zeros((shapes["B"], shapes["D"]), dtype)
        state = _empty(zeros)
    inputs = _contract.align_inputs(
        dict(
            k=recurrence.mask_padding(segment_ids, k).astype(dtype),
            v=recurrence.mask_padding(segment_ids, v).astype(dtype),
            log_decay=log_decay.astype(dtype),
            bonus=bonus.astype(dtype),
            segment_ids=segment_ids,
            initial=jax.tree.map(lambda x: x.astype(dtype), state),
        ),
        axis_name,
    )
    run = _dispatch.choose(_OP, implementation, form=form, **inputs)
    ids, state = inputs.pop("segment_ids"), inputs.pop("initial")
    real = starts = None
    if ids is not None:
        real = ids != recurrence.PADDING
        starts = recurrence.segment_starts(ids)
    local = functools.partial(
        run,
        **inputs,
        real=real,
        starts=starts,
        form=form,
        chunk_size=chunk_size,
    )
    if axis_name is not None:
        state = _incoming(
            local, inputs["log_decay"], ids, state, shapes["T"], options
        )
    o, state = local(initial=state)
    if axis_name is not None:
        state = recurrence.last_device(state, axis_name)
    o = recurrence.mask_padding(ids, o)
    num, den = (x.astype(state_dtype) for x in state[:2])
    return o.astype(v.dtype), RWKV4State(num, den, state.max)


def _run_xla(
    k, v, log_decay, bonus, real, starts, initial, *, form, chunk_size
):
    inputs = (k, v, log_decay, bonus, real, starts, initial)
    if k.size == 0:
        return v, initial
    if form == "chunk":
        size = min(chunk_size, k.shape[1])
        return _rwkv4_forms.chunked(size, *inputs)
    function = {
        "recurrent": _rwkv4_forms.recurrent,
        "parallel": _rwkv4_forms.parallel,
    }[form]
    return function(*inputs)


_dispatch.IMPLEMENTATIONS[_OP] = {"xla": _dispatch.Implementation(_run_xla)}


def _check_state(shapes, state):
    if state is None:
        return None
    if not isinstance(state, tuple) or len(state) != 3:
        raise ValueError(
            f"{_OP}: initial_state must be RWKV4State(num, den, max), each"
            f" [B, D], or None, got {type(state)}"
        )
    state = RWKV4State(*state)
    for name, x in state._asdict().items():
        shapes.bind(f"initial_state.{name}", x, "B D")
    return state


def _empty(zeros):
    return RWKV4State(zeros, zeros, jnp.full_like(zeros, -jnp.inf))


def _incoming(local, log_decay, segment_ids, initial, length, options):
    """The state that enters this device's shard.

    The shard's own sums come from a walk from nothing.
    """
    _, own = local(initial=_empty(jnp.zeros_like(initial.num)))
    cut = None
    if segment_ids is None:
        count = jnp.full((initial.num.shape[0], 1), length)
    else:
        real = segment_ids != recurrence.PADDING
        count = jnp.sum(real, axis=1, keepdims=True)
        cut = jnp.any(recurrence.segment_starts(segment_ids), axis=1)
    total = recurrence.decay_of(
        count * jnp.where(count > 0, log_decay[None], 0)
    )
    if cut is not None:
        total = total.cut(cut)
    own = _held(own)
    before, (num, den) = recurrence.incoming_stabilised(
        recurrence.Stabilised(total, None, own.max, own[:2]),
        (initial.max, _held(initial)[:2]),
        segment_ids,
        options.axis_name,
        options.exchange,
    )
    free = jnp.exp(-recurrence.moved(before))
    return RWKV4State(free * num, free * den, before)


def _held(state):
    """The same state, its sums differentiating as if max were a constant."""
    factor = jnp.exp(recurrence.moved(state.max))
    return RWKV4State(factor * state.num, factor * state.den, state.max)
