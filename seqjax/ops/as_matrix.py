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
      M float32 (float64 for float64 values; complex64 or complex128 for a
      complex `linear_recurrence`), M[..., i, j] the weight of token j in output
      i: [B, H, T, T] for operators with heads; [B, D, T, T] (all channel axes
      of x) for elementwise ones; [B, H, V, T, T] for `gated_delta_rule_2`, and
      for `delta_rule` with a beta for each value channel; [B, H, T, T n] for n
      sub-steps a token.

    Raises:
      ValueError: T > 512, an operator without values, or an option under which
        it is not linear in them.
    """
    name, arguments, preset = _bind(op, inputs, options)
    values = arguments.pop(name)
    if not hasattr(values, "dtype") or not hasattr(values, "shape"):
        came = "None" if values is None else type(values).__name__
        raise ValueError(
            f"{_OP}: {name} must be an array [B, T, ...], got {came}; of its"
            " entries none matters, so zeros will do"
        )
    if values.ndim < 3:
        raise ValueError(
            f"{_OP}: {name} must be [B, T, ...] with at least three axes, got"
            f" shape {values.shape}"
        )
    columns = values.shape[1]
    known = preset | arguments
    # T is that of the values, or less with several sub-steps a token.
    reads = _shape(known.get("q"))
    length = reads[1] if len(reads) > 1 else columns
    if length > _LONGEST:
        raise ValueError(
            f"{_OP}: T must be at most {_LONGEST}, got {length}: the matrix"
            " has T^2 entries a head; take a slice of the inputs"
        )
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        raise ValueError(f"{_OP}: {name} must be floats, got {values.dtype}")
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    run = functools.partial(_run, op, name, arguments)
    apart = any(len(_shape(known.get(n))) == 4 for n in _PER_CHANNEL)
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
    """The name of the values; what came and what was preset, by name."""
    try:
        arguments = _by_name(op, inspect.signature(op).bind, inputs, options)
        preset = {}
        if isinstance(op, functools.partial):
            bind = inspect.signature(op.func).bind_partial
            preset = _by_name(op.func, bind, op.args, op.keywords)
    except TypeError as error:
        raise ValueError(
            f"{_OP}: the inputs do not fit {_name(op)}: {error}"
        ) from error
    known = preset | arguments
    for name, why in _NOT_LINEAR.items():
        if known.get(name) is not None:
            raise ValueError(
                f"{_OP}: {name} {why}, so there is no matrix; leave it out"
            )
    for name in _FIXED:
        if known.get(name) is not None:
            raise ValueError(
                f"{_OP}: {name} has no place here: the matrix is made on one"
                " device and has no state"
            )
    for name in ("v", "x"):
        if name in arguments:
            return name, arguments, preset
    for name in ("v", "x"):
        if name in preset:
            raise ValueError(
                f"{_OP}: {name} must come beside {_name(op)}, got it bound in"
                " the partial; unit values take its place, so bind the rest"
            )
    raise ValueError(
        f"{_OP}: {_name(op)} has no values v or x in which it is linear; its"
        f" inputs are {', '.join(known)}"
    )


def _by_name(op, bind, inputs, options):
    """Arguments by name, those that `**rest` takes among them."""
    arguments = dict(bind(*inputs, **options).arguments)
    for name, parameter in inspect.signature(op).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _shape(x):
    """() for what is no array: the operator refuses it in its own words."""
    return getattr(x, "shape", ())


def _name(op):
    op = op.func if isinstance(op, functools.partial) else op
    return getattr(op, "__name__", repr(op))
