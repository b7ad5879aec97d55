"""Both directions of time, from any operator that runs in one.

    forward_t  = op(x_1 .. x_t)         backward_t = op(x_T .. x_t)

The backward pass is the same operator on reversed tokens, its output reversed
again.  Documents stay apart: reversed ids would decrease, so id s is renamed to
2^31 - 1 - s.  Twice the cost of the operator; not causal, hence neither state
nor decoding.  A token sees itself in both directions.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract

COMBINE = ("sum", "gate", "concat")
_OP = "bidirectional"
_LARGEST_ID = 2**31 - 1


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
      backward_inputs: of the backward direction, default `inputs`; a list or
        tuple of arrays of the same shapes, so that gates or keys may differ.
      combine: "sum": forward + backward; "gate": gate * forward +
        (1 - gate) * backward; "concat": both along the last axis.
      gate: with combine="gate" only, float in [0, 1], [B, T] or more of the
        output's axes, each of its size or 1.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`;
        the devices trade shards end for end, one permutation an input.

    Returns:
      y [B, T, ...], the last axis twice as wide for "concat".

    Raises:
      ValueError: an unknown or contradictory choice, arrays whose shapes
        disagree, a state or an axis bound in `op`.
    """
    _check_choices(op, combine, gate)
    _check_arrays(inputs, backward_inputs, segment_ids)
    length = inputs[0].shape[1]
    if segment_ids is None:
        reversed_ids = None
    else:
        # 0 and the largest int32 trade places: none becomes the padding mark.
        renamed = jnp.where(
            segment_ids == recurrence.PADDING,
            recurrence.PADDING,
            _LARGEST_ID - segment_ids,
        )
        reversed_ids = _reverse(renamed, length, axis_name)
    forward, _ = op(*inputs, segment_ids=segment_ids, axis_name=axis_name)
    if gate is not None:
        gate = _spread(gate, forward.shape)
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
    # Nothing at padding may reach a gradient.
    gate = recurrence.mask_padding(segment_ids, gate)
    # In the wider of both dtypes, as the operator rounds: once, at the end.
    y = gate * forward + (1 - gate) * backward
    return y.astype(forward.dtype)


def _spread(gate, shape):
    """The gate with as many axes as the output."""
    full = tuple(gate.shape) + (1,) * (len(shape) - gate.ndim)
    fits = len(full) == len(shape) and all(
        n in (1, m) for n, m in zip(full, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{_OP}: gate must be [B, T] or more of the output's axes, each of"
            f" its size or 1; the output is {tuple(shape)}, got shape"
            f" {tuple(gate.shape)}"
        )
    return jnp.reshape(gate, full)


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


def _check_choices(op, combine, gate):
    if not callable(op):
        raise ValueError(
            f"{_OP}: op must be an operator such as seqjax.ops.retention, or a"
            f" function that calls one, got {type(op).__name__}"
        )
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
    if gate is not None:
        shape = _shape("gate", gate)
        if len(shape) < 2 or not jnp.issubdtype(gate.dtype, jnp.floating):
            raise ValueError(
                f"{_OP}: gate must be a float array [B, T, ...], got"
                f" {gate.dtype} of shape {shape}"
            )
    if isinstance(op, functools.partial):
        for name in ("initial_state", "axis_name", "segment_ids"):
            if op.keywords.get(name) is not None:
                raise ValueError(
                    f"{_OP}: {name} is bound in op; a state has no place in"
                    " two directions, and where the sequence lies is said to"
                    f" {_OP} itself"
                )


def _check_arrays(inputs, backward_inputs, segment_ids):
    if not inputs:
        raise ValueError(f"{_OP}: inputs must be given, got none")
    shapes = [_shape(f"input {i}", x) for i, x in enumerate(inputs)]
    first = shapes[0]
    for index, shape in enumerate(shapes):
        if len(shape) < 2:
            raise ValueError(
                f"{_OP}: input {index} must be [B, T, ...], got shape {shape};"
                " bind parameters in op"
            )
        steps = shape[1] % first[1] if first[1] else shape[1]
        if shape[0] != first[0] or steps:
            raise ValueError(
                f"{_OP}: input {index} must be [B, T, ...] or [B, n T, ...]"
                f" with B and T of the first, {first}, got shape {shape}; bind"
                " parameters in op"
            )
    if segment_ids is not None:
        sizes = _contract.Shapes(_OP)
        for letter, size in zip("BT", first[:2], strict=True):
            sizes.bind("input 0", jax.ShapeDtypeStruct((size,), int), letter)
        _contract.check_segment_ids(_OP, sizes, segment_ids)
    if backward_inputs is None:
        return
    if not isinstance(backward_inputs, (list, tuple)):
        raise ValueError(
            f"{_OP}: backward_inputs must be a list or tuple of arrays like"
            f" the inputs, got {type(backward_inputs).__name__}"
        )
    if len(backward_inputs) != len(inputs):
        raise ValueError(
            f"{_OP}: backward_inputs must be {len(inputs)} arrays like the"
            f" inputs, got {len(backward_inputs)}"
        )
    for index, (x, shape) in enumerate(
        zip(backward_inputs, shapes, strict=True)
    ):
        came = _shape(f"backward_inputs[{index}]", x)
        if came != shape:
            raise ValueError(
                f"{_OP}: backward_inputs[{index}] must have the shape of input"
                f" {index}, {shape}, got shape {came}"
            )


def _shape(name, x):
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        came = "None" if x is None else type(x).__name__
        raise ValueError(
            f"{_OP}: {name} must be an array [B, T, ...], got {came}; bind"
            " options and parameters in op"
        )
    return tuple(x.shape)
