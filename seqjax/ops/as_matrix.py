"""The T x T matrix that an operator stands for.

Every operator here is linear in its values:

    y_i = sum over j of M_ij v_j        M depends on the other inputs alone

for attention-like operators with one M a head, for elementwise ones with one M
a channel.  Column j is the operator's own answer to a unit value at token j, so
M is what really runs, whatever the form, normaliser, decay or segment.  T^2
numbers a head: for plots, teaching and tests, not for work.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

_OP = "as_matrix"
_LONGEST = 512
# Arguments beside the values that make y nonlinear or add what no value did.
_NOT_LINEAR = {
    "initial_state": "adds to y what no token of this sequence wrote",
    "bias": "adds a constant to y",
    "activation": "is not linear",
}
_FIXED = ("axis_name", "exchange", "state_dtype")
# Of the operators on x, those whose channels in a head share one matrix.
_HEADWISE = ("ssd",)
# Arguments that, with four axes, tell value channels apart.
_PER_CHANNEL = ("beta", "w")


def as_matrix(
    op: Callable[..., tuple[jax.Array, Any]], *inputs: Any, **options: Any
) -> jax.Array:
    """The token-mixing matrix of an operator on these inputs.

    Args:
      op: an operator of `seqjax.ops`, or a `functools.partial` of one.
      *inputs: as the operator takes them.  Of its values (`v`, or `x`) only the
        shape and dtype matter.
      **options: keyword arguments of the operator, such as segment_ids, form,
        scale; checked by the operator itself.

    Returns:
      M float32 (float64), M[..., i, j] the weight of token j in output i:
      [B, H, T, T] for operators with heads; [B, D, T, T] (all channel axes of
      x) for elementwise ones; [B, H, V, T, T] for `delta_rule` with a beta for
      each value channel; [B, H, T, T n] for n sub-steps a token.

    Raises:
      ValueError: T > 512, an operator without values, or an option under which
        it is not linear in them.
    """
    name, arguments = _bind(op, inputs, options)
    values = jnp.asarray(arguments.pop(name))
    if values.ndim < 3:
        raise ValueError(
            f"{_OP}: {name} must be [B, T, ...] with at least three axes, got"
            f" shape {values.shape}"
        )
    columns = values.shape[1]
    length = _length(arguments, values)
    if length > _LONGEST:
        raise ValueError(
            f"{_OP}: T must be at most {_LONGEST}, got {length}: the matrix"
            " has T^2 entries a head; take a slice of the inputs"
        )
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        raise ValueError(f"{_OP}: {name} must be floats, got {values.dtype}")
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    run = functools.partial(_run, op, name, arguments)
    apart = any(jnp.ndim(arguments.get(n, 0)) == 4 for n in _PER_CHANNEL)
    if (
        values.ndim == 4
        and not apart
        and (name == "v" or _name(op) in _HEADWISE)
    ):
        # One matrix for all value channels: unit j goes into channel j.
        shape = (*values.shape[:3], columns)
        units = jnp.eye(columns, dtype=dtype)[None, :, None, :]
        return jnp.moveaxis(run(jnp.broadcast_to(units, shape)), 1, 2)

    def column(unit):
        unit = unit.reshape(1, columns, *(1,) * (values.ndim - 2))
        return run(jnp.broadcast_to(unit, values.shape))

    responses = jax.vmap(column)(jnp.eye(columns, dtype=dtype))
    return jnp.moveaxis(responses, (0, 2), (-1, -2))


def _run(op, name, arguments, values):
    return op(**arguments, **{name: values})[0]


def _bind(op, inputs, options):
    """The name of the values, and all arguments by name."""
    try:
        signature = inspect.signature(op)
        bound = signature.bind(*inputs, **options)
    except TypeError as error:
        raise ValueError(
            f"{_OP}: the inputs do not fit {_name(op)}: {error}"
        ) from error
    arguments = {n: x for n, x in bound.arguments.items() if x is not None}
    preset = op.keywords if isinstance(op, functools.partial) else {}
    for name, why in _NOT_LINEAR.items():
        given = arguments.get(name, preset.get(name))
        if given is not None:
            raise ValueError(
                f"{_OP}: {name} {why}, so there is no matrix; leave it out"
            )
    for name in _FIXED:
        if arguments.get(name, preset.get(name)) is not None:
            raise ValueError(
                f"{_OP}: {name} has no place here: the matrix is made on one"
                " device and has no state"
            )
    for name in ("v", "x"):
        if name in arguments:
            return name, arguments
    raise ValueError(
        f"{_OP}: {_name(op)} has no values v or x in which it is linear; its"
        f" inputs are {', '.join(arguments)}"
    )


def _length(arguments, values):
    """T: that of the values, or less with several sub-steps a token."""
    q = arguments.get("q")
    return values.shape[1] if q is None else jnp.shape(q)[1]


def _name(op):
    op = op.func if isinstance(op, functools.partial) else op
    return getattr(op, "__name__", repr(op))
