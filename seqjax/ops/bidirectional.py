"""Both directions of time, from any operator that runs in one.

    forward_t  = op(x_1 .. x_t)         backward_t = op(x_T .. x_t)

The backward pass is the same operator on reversed tokens, its output reversed
again.  Documents stay apart: reversed ids would decrease, so id s is renamed to
2^31 - 2 - s.  Twice the cost of the operator; not causal, hence neither state
nor decoding.  A token sees itself in both directions.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import recurrence

COMBINE = ("sum", "gate", "concat")
_OP = "bidirectional"
_LARGEST_ID = 2**31 - 2


def bidirectional(
    op: Callable[..., tuple[jax.Array, Any]],
    *inputs: jax.Array,
    backward_inputs: Sequence[jax.Array] | None = None,
    combine: str = "sum",
    gate: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Runs an operator forward and backward over time and combines both.

    Options and parameters without a time axis are bound beforehand:

        bidirectional(functools.partial(ops.retention, chunk_size=32), q, k, v)
        bidirectional(lambda x, dt, B, C, **where: ops.ssd(x, dt, A, B, C,
                      **where), x, dt, B, C)

    Args:
      op: called as op(*inputs, segment_ids=..., axis_name=...), once for each
        direction; returns (y, state).
      *inputs: the operator's inputs with a time axis, [B, T, ...] (or
        [B, n T, ...]: n sub-steps a token, kept in order).
      backward_inputs: of the backward direction, default `inputs`; one a
        position, so that gates or keys may differ.
      combine: "sum": forward + backward; "gate": gate * forward +
        (1 - gate) * backward; "concat": both along the last axis.
      gate: with combine="gate" only, in [0, 1], [B, T, ...], broadcast against
        the output.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`;
        the devices trade shards end for end, one permutation an input.

    Returns:
      y [B, T, ...], the last axis twice as wide for "concat".

    Raises:
      ValueError: an unknown or contradictory choice, inputs whose time axes
        disagree, a state or an axis bound in `op`.
    """
    _check(op, inputs, backward_inputs, combine, gate)
    length = inputs[0].shape[1]
    if segment_ids is None:
        reversed_ids = None
    else:
        renamed = jnp.where(
            segment_ids == recurrence.PADDING,
            recurrence.PADDING,
            _LARGEST_ID - segment_ids,
        )
        reversed_ids = _reverse(renamed, length, axis_name)
    forward, _ = op(*inputs, segment_ids=segment_ids, axis_name=axis_name)
    turned = [
        _reverse(x, length, axis_name)
        for x in (inputs if backward_inputs is None else backward_inputs)
    ]
    backward, _ = op(*turned, segment_ids=reversed_ids, axis_name=axis_name)
    backward = _reverse(backward, length, axis_name)
    if combine == "concat":
        return jnp.concatenate([forward, backward], axis=-1)
    if gate is None:
        return forward + backward
    gate = gate.reshape(gate.shape + (1,) * (forward.ndim - gate.ndim))
    # In the wider of both dtypes, as the operator rounds: once, at the end.
    y = gate * forward + (1 - gate) * backward
    return y.astype(forward.dtype)


def _reverse(x, length, axis_name):
    """Last token first; sub-steps of a token stay in order."""
    steps = x.shape[1] // max(length, 1)
    tokens = x.reshape(x.shape[0], length, steps, *x.shape[2:])
    x = jnp.flip(tokens, axis=1).reshape(x.shape)
    if axis_name is None:
        return x
    devices = jax.lax.axis_size(axis_name)
    ends = [(i, devices - 1 - i) for i in range(devices)]
    return jax.lax.ppermute(x, axis_name, ends)


def _check(op, inputs, backward_inputs, combine, gate):
    if combine not in COMBINE:
        raise ValueError(
            f"{_OP}: combine must be one of {', '.join(COMBINE)}, got"
            f" {combine!r}"
        )
    if (gate is None) == (combine == "gate"):
        raise ValueError(
            f"{_OP}: gate goes with combine='gate' and with nothing else, got"
            f" combine={combine!r} and gate {'None' if gate is None else 'set'}"
        )
    if isinstance(op, functools.partial):
        for name in ("initial_state", "axis_name", "segment_ids"):
            if op.keywords.get(name) is not None:
                raise ValueError(
                    f"{_OP}: {name} is bound in op; a state has no place in"
                    " two directions, and where the sequence lies is said to"
                    f" {_OP} itself"
                )
    if not inputs:
        raise ValueError(f"{_OP}: inputs must be given, got none")
    if backward_inputs is not None and len(backward_inputs) != len(inputs):
        raise ValueError(
            f"{_OP}: backward_inputs must be {len(inputs)} arrays like the"
            f" inputs, got {len(backward_inputs)}"
        )
    for index, x in enumerate((*inputs, *(backward_inputs or ()))):
        shape = tuple(jnp.shape(x))
        first = tuple(jnp.shape(inputs[0]))
        if len(shape) < 2 or shape[0] != first[0] or shape[1] % first[1]:
            raise ValueError(
                f"{_OP}: input {index} must be [B, T, ...] like the first,"
                f" {first}, got shape {shape}; bind parameters in op"
            )
