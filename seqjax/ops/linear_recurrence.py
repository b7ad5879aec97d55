"""Elementwise linear recurrence: HGRN, RG-LRU, S5 and diagonal memories.

Qin et al., "Hierarchically Gated Recurrent Neural Network" (arXiv 2311.04823);
De et al., "Griffin" (arXiv 2402.19427); Smith et al., "S5" (arXiv 2208.04933):

    h_t = exp(g_t) * h_{t-1} + x_t

with real or complex gates g, every element on its own.  Time O(1) an element of
every token, memory for the backward pass the gates and h.  Weak in what it can
hold: a number an element, written and read by elementwise products alone.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _elementwise
from seqjax.parallel import elementwise

_OP = "linear_recurrence"
_RECURRENT_UP_TO = 4


def linear_recurrence(
    x: jax.Array,
    log_decay: jax.Array,
    *,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """h = exp(log_decay) h + x over time, elementwise in all other axes.

    Args:
      x: [B, T, ...] float16, bfloat16, float32, complex64, or (all inputs)
        float64, complex128; complex if any input is.
      log_decay: broadcasts against `x`: of its rank, with axes of its sizes or
        1, or with fewer axes, which are the last ones.  Natural logarithm of
        the decay; its real part is <= 0, -inf allowed.
      initial_state: [B, ...], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode; parallel
        holds T x T decays an element.
      chunk_size: tokens a chunk; implies form="chunk".  Chunks are walked
        side by side; default 64, on CPU all T tokens.
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64), complex64
        (complex128) where `x` is complex.

    Returns:
      (h [B, T, ...] in the dtype of x, state [B, ...], the last h of a real
      token).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    if x is None or jnp.ndim(x) < 2:
        raise ValueError(
            f"{_OP}: x must have shape [B, T, ...], got"
            f" {'None' if x is None else jnp.shape(x)}"
        )
    trailing = " ".join(str(n) for n in x.shape[2:])
    shapes.bind("x", x, f"B T {trailing}")
    log_decay = _broadcast(log_decay, x)
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, f"B {trailing}")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _accumulation_dtype(x, log_decay, initial_state)
    state_dtype = _check_state_dtype(state_dtype, dtype)
    options = _contract.Options(
        segment_ids, axis_name, exchange, form, chunk_size, implementation
    )
    form, chunk_size = _contract.choose_form(
        _OP,
        options,
        length=x.shape[1],
        recurrent_up_to=_RECURRENT_UP_TO,
        default_chunk=_default_chunk(x.shape[1]),
    )
    if initial_state is None:
        initial_state = jnp.zeros((x.shape[0], *x.shape[2:]), dtype)
    inputs = _contract.align_inputs(
        dict(
            x=recurrence.mask_padding(segment_ids, x).astype(dtype),
            log_decay=recurrence.mask_padding(segment_ids, log_decay).astype(
                dtype
            ),
            segment_ids=segment_ids,
            initial=initial_state.astype(dtype),
        ),
        axis_name,
    )
    run = _dispatch.choose(_OP, implementation, form=form, **inputs)
    local = functools.partial(run, form=form, chunk_size=chunk_size)
    if axis_name is not None:
        y, state = elementwise.shard_elementwise(
            local, **inputs, axis_name=axis_name, exchange=exchange
        )
    else:
        starts = None
        if segment_ids is not None:
            starts = recurrence.segment_starts(inputs["segment_ids"])
        y, state = local(
            inputs["x"], inputs["log_decay"], starts, inputs["initial"]
        )
    y = recurrence.mask_padding(segment_ids, y)
    return y.astype(x.dtype), state.astype(state_dtype)


def _default_chunk(length):
    # Measured on two CPU cores at B1 T2048, 256 channels, forward and backward:
    # 1.9 ms in one chunk, 2.8 in two, 3.8 in 32, and 2.1 by autodiff.
    return max(length, 1) if _dispatch.platform() == "cpu" else 64


def _run_xla(x, log_decay, starts, initial, *, form, chunk_size):
    if x.size == 0:
        return x, initial
    if form == "chunk":
        chunk_size = min(chunk_size, x.shape[1])
        return _elementwise.chunked(chunk_size, x, log_decay, starts, initial)
    function = {
        "recurrent": _elementwise.recurrent,
        "parallel": _elementwise.parallel,
    }[form]
    return function(x, log_decay, starts, initial)


_dispatch.IMPLEMENTATIONS[_OP] = {"xla": _dispatch.Implementation(_run_xla)}


def _broadcast(log_decay, x):
    if log_decay is None:
        raise ValueError(
            f"{_OP}: log_decay must broadcast against x of shape {x.shape},"
            " got None"
        )
    shape = jnp.shape(log_decay)
    full = (1,) * (x.ndim - len(shape)) + shape
    fits = len(full) == x.ndim and all(
        n in (1, m) for n, m in zip(full, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{_OP}: log_decay must broadcast against x of shape {x.shape},"
            f" got shape {shape}"
        )
    return jnp.broadcast_to(jnp.reshape(log_decay, full), x.shape)


def _accumulation_dtype(x, log_decay, initial_state):
    """float32 or float64, complex where x is."""
    inputs = dict(x=x, log_decay=log_decay, initial_state=initial_state)
    dtypes = {n: jnp.result_type(a) for n, a in inputs.items() if a is not None}
    is_complex = {
        n: jnp.issubdtype(d, jnp.complexfloating) for n, d in dtypes.items()
    }
    if not is_complex["x"] and any(is_complex.values()):
        names = ", ".join(n for n, c in is_complex.items() if c)
        raise ValueError(
            f"{_OP}: x must be complex where {names} is, got"
            f" {dtypes['x'].name}; cast x, and take the real part of h if it"
            " is all you need"
        )
    parts = {
        n: jnp.zeros((), jnp.finfo(d).dtype if is_complex[n] else d)
        for n, d in dtypes.items()
    }
    real = _contract.accumulation_dtype(_OP, **parts)
    return jnp.result_type(real, jnp.complex64) if is_complex["x"] else real


def _check_state_dtype(state_dtype, dtype):
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return _contract.check_state_dtype(_OP, state_dtype, dtype)
    if state_dtype is None:
        return dtype
    known = [jnp.dtype(name) for name in ("complex64", "complex128")]
    chosen = [x for x in known if x == state_dtype]
    if not chosen:
        raise ValueError(
            f"{_OP}: state_dtype must be complex64, complex128 or None where x"
            f" is complex, got {state_dtype!r}"
        )
    _contract.check_available(_OP, "state_dtype", chosen[0])
    return chosen[0]
