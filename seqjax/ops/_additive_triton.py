"""The additive rule as GPU kernels, with the derivative of the chunk form.

Residuals are those of the chunk form: the inputs, and one state a chunk, here
in the dtype in which products read it; with gates of channels the scores too.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax_kernels import batching
from seqjax_kernels import launch
from seqjax_kernels.decay import channel
from seqjax_kernels.decay import problems
from seqjax_kernels.decay import scalar

_WIDEST = 256  # keys and values of a head


class Plan(NamedTuple):
    """Static choices (hashable)."""

    chunk_size: int | None
    scale: float
    decay_gradient: bool


def run(
    q,
    k,
    v,
    log_decay,
    starts,
    initial,
    *,
    form,
    chunk_size,
    scale,
    dtype,
    precision,
    decay_gradient=True,
):
    """The additive rule by kernels; arguments of the form in plain JAX."""
    del form, precision  # chunk; the kernels settle theirs by the dtypes
    plan = Plan(chunk_size, float(scale), decay_gradient)
    if problems.operand_of(q, k, v) == "bf16":
        # Products round values to it: wider ones are only more to move.
        v = v.astype(jnp.bfloat16)
    made: Any = _additive(plan, q, k, v, log_decay, starts, initial)
    y, state = made
    return y.astype(dtype), state


def refuses(
    platform,
    *,
    form,
    chunk_size,
    q,
    k,
    v,
    log_decay,
    segment_ids,
    initial,
):
    """Why the kernels cannot run these arguments, or None."""
    del platform, segment_ids  # launch knows which GPU is meant
    if form != "chunk":
        return f"has no form {form!r}, only 'chunk'"
    if initial.dtype == jnp.float64:
        return "takes no float64"
    key, value = q.shape[-1], v.shape[-1]
    if max(key, value) > _WIDEST:
        return f"takes K and V up to {_WIDEST}, got K = {key}, V = {value}"
    if q.size == 0 or v.size == 0:
        return "takes no empty inputs"
    sizes = problems.chunk_sizes(q, k, v, log_decay)
    if chunk_size is not None and chunk_size not in sizes:
        accepted = ", ".join(str(size) for size in sizes)
        return f"takes a chunk_size of {accepted} here, got {chunk_size}"
    return launch.why_not()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _additive(plan, q, k, v, log_decay, starts, initial):
    return _forward(plan, q, k, v, log_decay, starts, initial)[0]


def _forward(plan, q, k, v, log_decay, starts, initial):
    kernels = channel if _of_channels(log_decay) else scalar
    run = functools.partial(
        kernels.forward, scale=plan.scale, chunk_size=plan.chunk_size
    )
    inputs = (q, k, v, log_decay, starts, initial)
    leads = (True, True, True, _of_tokens(log_decay), True, True)
    y, state, *kept = batching.fold(run, leads)(*inputs)
    return (y, state), (q, k, v, log_decay, starts, *kept)


def _backward(plan, residual, cotangents):
    log_decay = residual[3]
    shared = dict(scale=plan.scale, chunk_size=plan.chunk_size)
    if _of_channels(log_decay):
        backward = functools.partial(channel.backward, **shared)
    else:
        backward = functools.partial(
            scalar.backward, gate_gradient=plan.decay_gradient, **shared
        )

    def run(*arrays):
        return tuple(x for x in backward(*arrays) if x is not None)

    inputs = (*residual, *cotangents)
    leads = tuple(i != 3 or _of_tokens(log_decay) for i in range(len(inputs)))
    q_bar, k_bar, v_bar, *log_bar, initial_bar = batching.fold(run, leads)(
        *inputs
    )
    log_bar = log_bar[0] if log_bar else None
    if log_decay is not None:
        if log_bar is None:
            log_bar = jnp.zeros_like(log_decay)
        elif not _of_tokens(log_decay):
            log_bar = jnp.sum(log_bar, axis=(0, 1))
    return q_bar, k_bar, v_bar, log_bar, None, initial_bar


_additive.defvjp(_forward, _backward)


def _of_tokens(log_decay):
    return log_decay is None or log_decay.ndim > 1


def _of_channels(log_decay):
    return log_decay is not None and log_decay.ndim == 4
