"""What the rules that erase before they write share behind their operators."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _channel_delta_chunk
from seqjax.ops import _channel_delta_layout
from seqjax.ops import _contract
from seqjax.ops import _delta_channel_parts
from seqjax.ops import _delta_chunk
from seqjax.ops import _delta_forms
from seqjax.ops import _delta_parts
from seqjax.ops import _delta_value
from seqjax.ops import _dispatch
from seqjax.parallel import sequence

# That of the additive rule, where it was measured (see `_additive`).
RECURRENT_UP_TO = 4


class Rule(NamedTuple):
    """How an operator runs (hashable).

    Attributes:
      parts: of a group of chunks, as `chunk` takes them.
      dense_parts: `_delta_chunk.Parts` of one chunk of T, differentiable twice.
      recurrent: (plan, inputs, starts, initial) -> (y, state).
      chunk: the same, for the chunk form.
      parallel: the same, for the parallel form, its plan with `dense_parts`.
      default_chunk: writes a chunk where the caller names none.
      products: chunks times heads that a scan step holds.  128 of the default
        are no faster forward, and slower by a third with gradients: the scratch
        is above 32 MiB then, and malloc maps it anew in each call.
    """

    parts: Callable[..., Any]
    dense_parts: Callable[..., Any]
    recurrent: Callable[..., Any]
    chunk: Callable[..., Any] = _delta_chunk.delta_chunk
    parallel: Callable[..., Any] = _delta_forms.solve_parallel
    default_chunk: int = 64
    products: int = 64


SCALAR = Rule(
    _delta_parts.scalar_parts,
    _delta_parts.dense_scalar_parts,
    _delta_forms.delta_recurrent,
)
# Chunks of 64 or 128 and groups of more of them are slower: a step's arrays
# leave the cache.
_CHANNEL_SIZE = 32
CHANNEL = Rule(
    _channel_delta_layout.channel_chunks,
    _delta_channel_parts.dense_channel_parts,
    _delta_forms.delta_recurrent,
    _channel_delta_chunk.chunk,
    default_chunk=_CHANNEL_SIZE,
    products=_CHANNEL_SIZE,
)
DPLR = Rule(
    _channel_delta_layout.dplr_chunks,
    _delta_channel_parts.dense_dplr_parts,
    _delta_forms.dplr_recurrent,
    _channel_delta_chunk.chunk,
    default_chunk=_CHANNEL_SIZE,
    products=_CHANNEL_SIZE,
)
VALUE = Rule(
    _delta_parts.scalar_parts,
    _delta_parts.dense_scalar_parts,
    _delta_forms.delta_recurrent,
    _delta_value.value_chunk,
    _delta_value.value_parallel,
)
READ_FIRST = Rule(
    _delta_parts.scalar_parts_read_first,
    _delta_parts.dense_scalar_parts_read_first,
    _delta_forms.delta_recurrent_read_first,
)


def run(
    op: str,
    rule: Rule,
    inputs: dict,
    *,
    steps: int = 1,
    scale: float,
    initial: jax.Array | None,
    options: _contract.Options,
    dtype,
) -> tuple[jax.Array, jax.Array]:
    """Runs a rule on checked inputs.

    Args:
      op: name of the public operator, for messages and dispatch.
      rule: how it runs.
      inputs: by the names that the rule knows, q, k and v among them; q is
        [B, T, G, K], the others [B, T * steps, ...].  None is kept.
      steps: writes a token.
      scale: factor of q.
      initial: [B, H, K, V] or None for zeros.
      options: the caller's options; `segment_ids` are checked already.
      dtype: of accumulation.

    Returns:
      (y [B, T, H, V], state [B, H, K, V]), both in `dtype`.
    """
    q, v = inputs["q"], inputs["v"]
    batch, length = q.shape[:2]
    form, chunk_size = _contract.choose_form(
        op,
        options,
        length=length,
        recurrent_up_to=RECURRENT_UP_TO,
        default_chunk=max(1, rule.default_chunk // steps),
    )
    segment_ids, axis_name = options.segment_ids, options.axis_name
    shape = (batch, v.shape[2], q.shape[-1], v.shape[-1])
    state = jnp.zeros(shape, dtype) if initial is None else initial
    step_ids = segment_ids
    if step_ids is not None:
        step_ids = jnp.repeat(step_ids, steps, axis=1)
    masked = {
        name: None
        if x is None
        else recurrence.mask_padding(
            segment_ids if name == "q" else step_ids, x
        )
        for name, x in inputs.items()
    }
    aligned = _contract.align_inputs(
        dict(
            inputs=masked,
            segment_ids=segment_ids,
            step_ids=step_ids,
            state=state.astype(dtype),
        ),
        axis_name,
    )
    inputs, state = aligned["inputs"], aligned["state"]
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(aligned["step_ids"])
    precision = _contract.precision(q, inputs["k"], v)
    execute = _dispatch.choose(op, options.implementation, form=form, **inputs)
    local = functools.partial(
        execute,
        rule=rule,
        starts=starts,
        form=form,
        chunk_size=chunk_size,
        steps=steps,
        scale=scale,
        dtype=dtype,
        precision=precision,
    )
    if axis_name is None:
        return local(inputs, state)

    if rule is VALUE:
        return sequence.shard_dense_values(
            lambda values, beta, initial: local(
                inputs | {"v": values, "beta": beta}, initial
            ),
            inputs["v"].astype(dtype),
            inputs["beta"].astype(dtype),
            aligned["segment_ids"],
            state,
            axis_name=axis_name,
            exchange=options.exchange,
        )

    def of_values(values, initial):
        return local(inputs | {"v": values}, initial)

    return sequence.shard_dense(
        of_values,
        inputs["v"].astype(dtype),
        aligned["segment_ids"],
        state,
        axis_name=axis_name,
        exchange=options.exchange,
    )


def run_xla(
    inputs,
    initial,
    *,
    rule,
    starts,
    form,
    chunk_size,
    steps,
    scale,
    dtype,
    precision,
):
    """A rule in plain JAX; the reference of any kernel."""
    q, v = inputs["q"], inputs["v"]
    if v.size == 0:
        return jnp.zeros((*q.shape[:2], *v.shape[2:]), dtype), initial
    plan = _delta_chunk.make_plan(
        rule.parts,
        v,
        chunk_size=chunk_size,
        products=rule.products,
        steps=steps,
        scale=scale,
        dtype=dtype,
        precision=precision,
    )
    if form == "chunk":
        return rule.chunk(plan, inputs, starts, initial)
    if form == "recurrent":
        return rule.recurrent(plan, inputs, starts, initial)
    plan = _delta_forms.parallel_plan(plan, rule.dense_parts, q.shape[1])
    return rule.parallel(plan, inputs, starts, initial)


def register(op: str) -> None:
    """Gives `op` its row of implementations."""
    _dispatch.IMPLEMENTATIONS[op] = {"xla": _dispatch.Implementation(run_xla)}


def finish(op: str, y, state, v, state_dtype, dtype):
    """Casts results to what the contract promises."""
    state_dtype = _contract.check_state_dtype(op, state_dtype, dtype)
    return y.astype(v.dtype), state.astype(state_dtype)


check_heads = _additive.check_heads
check_scale = _additive.check_scale
