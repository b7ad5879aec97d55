"""Log-linear attention.

Guo et al., "Log-Linear Attention" (arXiv 2506.04761): the past of token t falls
into binary blocks that grow with distance, each with a state and a weight,

    o_t = scale sum over levels l of lambda_t[l] S_t[l]^T q_t
    S_t[l] = sum over tokens j on level l of exp(g_{j+1} + .. + g_t) k_j v_j^T

Token j of a document is on level 0 of itself, else on 1 + the highest bit in
which t and j differ.  With all weights equal it is gated linear attention.

Time O(T (C + K log T) V) a head in chunk form; state K V log T floats, one of
them kept a chunk for the backward pass.  Weak in that distance, not content,
decides which tokens share a state, and in the memory of its states.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _log_linear_forms
from seqjax.parallel import levels

_OP = "log_linear_attention"
_RECURRENT_UP_TO = 4
# The fastest on two cores of chunks of 32 .. 128 and of 4 .. 32 products a scan
# step: a product holds all levels and is large enough by itself.
_DEFAULT_CHUNK = 128
_PRODUCTS = 4


class LogLinearState(NamedTuple):
    """State of log-linear attention.

    Attributes:
      levels: [B, H, L, K, V], on the levels of the last token seen.
      count: int32 [B], tokens of the document seen so far.
    """

    levels: jax.Array
    count: jax.Array


def log_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    level_scales: jax.Array,
    *,
    scale: float | None = 1.0,
    initial_state: LogLinearState | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, LogLinearState]:
    """Gated linear attention with a weight for each binary block of the past.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      log_decay: [B, T, H], natural logarithm of the decay, <= 0, -inf allowed.
      level_scales: [B, T, H, L], weights of the levels.  ceil(log2 n) + 1 are
        needed for documents of n tokens; with fewer, the last one also serves
        whatever is farther away.
      scale: factor of q, default 1; None for K**-0.5.
      initial_state: `LogLinearState`, default empty.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding;
        positions begin anew in each document.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`; the
        levels of a shard wait for a first exchange, of where it begins.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.
      chunk_size: tokens a chunk, default 128; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned levels, default float32 (float64).

    Returns:
      (o [B, T, H, V] in the dtype of v, `LogLinearState`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _additive.check_heads(_OP, q, k, v, None, segment_ids)
    shapes.bind("log_decay", log_decay, "B T H")
    shapes.bind("level_scales", level_scales, "B T H L")
    if shapes["L"] < 1:
        raise ValueError(
            f"{_OP}: level_scales must have at least one level, got shape"
            f" {jnp.shape(level_scales)}"
        )
    state = _check_state(shapes, initial_state)
    dtype = _contract.accumulation_dtype(
        _OP,
        q=q,
        k=k,
        v=v,
        log_decay=log_decay,
        level_scales=level_scales,
        initial_state=None if state is None else state.levels,
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    form, chunk_size = _contract.choose_form(
        _OP,
        _contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        length=shapes["T"],
        recurrent_up_to=_RECURRENT_UP_TO,
        default_chunk=_DEFAULT_CHUNK,
    )
    if state is None:
        sizes = tuple(shapes[letter] for letter in "BHLKV")
        state = LogLinearState(
            jnp.zeros(sizes, dtype), jnp.zeros(shapes["B"], jnp.int32)
        )
    inputs = dict(q=q, k=k, v=v, log=log_decay, scales=level_scales)
    aligned = _contract.align_inputs(
        {n: recurrence.mask_padding(segment_ids, x) for n, x in inputs.items()}
        | dict(segment_ids=segment_ids, state=state),
        axis_name,
    )
    segment_ids, state = aligned.pop("segment_ids"), aligned.pop("state")
    repeat = shapes["H"] // shapes["Hk"]
    for name, x in aligned.items():
        x = x.astype(dtype)
        aligned[name] = jnp.repeat(x, repeat, 2) if name in ("q", "k") else x
    count = state.count
    if axis_name is not None:
        count = levels.incoming_count(
            count, segment_ids, shapes["T"], axis_name, exchange
        )
    before = jnp.maximum(count - 1, 0)
    position, starts, count = _positions(count, segment_ids, shapes["T"])
    tokens = _log_linear_forms.Tokens(
        **aligned, position=position, starts=starts
    )
    options: Any = dict(
        scale=_additive.check_scale(_OP, scale, shapes["K"]),
        precision=_contract.precision(q, k, v),
    )
    run = _dispatch.choose(_OP, implementation, tokens, form=form)
    local = functools.partial(
        run, tokens, before, form=form, chunk_size=chunk_size, **options
    )
    initial = state.levels.astype(dtype)
    if axis_name is None:
        y, final = local(initial)
    else:
        y, final = levels.shard_levels(
            local,
            tokens.q,
            tokens.log,
            tokens.scales,
            _log_linear_forms.level(before[:, None], position, shapes["L"]),
            starts,
            segment_ids,
            initial,
            **options,
            axis_name=axis_name,
            exchange=exchange,
        )
        count = recurrence.last_device(count, axis_name)
    return y.astype(v.dtype), LogLinearState(final.astype(state_dtype), count)


def _check_state(shapes, state):
    if state is None:
        return None
    if not isinstance(state, tuple) or len(state) != 2:
        raise ValueError(
            f"{_OP}: initial_state must be LogLinearState(levels"
            f" [B, H, L, K, V], count [B]) or None, got {type(state)}"
        )
    shapes.bind("initial_state.levels", state[0], "B H L K V")
    shapes.bind("initial_state.count", state[1], "B")
    if jnp.result_type(state[1]) != jnp.int32:
        raise ValueError(
            f"{_OP}: initial_state.count must be int32, got"
            f" {jnp.result_type(state[1]).name}"
        )
    return LogLinearState(*state)


def _positions(count, segment_ids, length):
    """Position of the last real token up to each, starts, and count behind."""
    if segment_ids is None:
        ahead = jnp.arange(length, dtype=jnp.int32)
        seen = count[:, None] + 1 + ahead[None]
        return seen - 1, None, count + length
    real = segment_ids != recurrence.PADDING
    starts = recurrence.segment_starts(segment_ids)
    seen = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    # What of it belongs to earlier documents; minus what came in before.
    earlier = jnp.where(starts, seen - 1, -count[:, None])
    seen = seen - jax.lax.cummax(earlier, axis=1)
    seen = jnp.concatenate([count[:, None], seen], axis=1)  # T may be 0
    return jnp.maximum(seen[:, 1:] - 1, 0), starts, seen[:, -1]


def _run_xla(tokens, before, initial, *, form, chunk_size, scale, precision):
    if tokens.v.size == 0:
        return jnp.zeros_like(tokens.v), initial
    run = {
        "recurrent": _log_linear_forms.recurrent,
        "parallel": _log_linear_forms.parallel,
        "chunk": functools.partial(
            _log_linear_forms.chunked,
            chunk_size=chunk_size,
            products=_PRODUCTS,
        ),
    }[form]
    return run(tokens, before, initial, scale=scale, precision=precision)


_dispatch.IMPLEMENTATIONS[_OP] = {"xla": _dispatch.Implementation(_run_xla)}
