"""Checks and casts that every operator shares.

An operator first binds the letters of its shapes (`Shapes`), then settles its
arithmetic (`accumulation_dtype`, `precision`), its form (`choose_form`), and
lets all inputs vary over the same mesh axes (`align_inputs`).

Chunk forms have a hand-written derivative, for one reverse pass.  Forward mode
through them (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) ends in JAX's own
TypeError, "can't apply forward-mode autodiff (jvp) to a custom_vjp function":
use form="recurrent" or form="parallel" there.
"""

from collections.abc import Collection, Sequence
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Options(NamedTuple):
    """The options every operator takes, as the caller gave them."""

    segment_ids: jax.Array | None = None
    axis_name: str | None = None
    exchange: str | None = None
    form: str | None = None
    chunk_size: int | None = None
    implementation: str | Sequence[str] | None = None


class Shapes:
    """Binds dimension letters to sizes, and names whoever disagrees.

    >>> shapes = Shapes("linear_attention")
    >>> shapes.bind("q", q, "B T G K")
    >>> shapes["B"]
    """

    def __init__(self, op: str):
        """Starts with no letter bound; `op` opens every message."""
        self.op = op
        self.sizes: dict[str, int] = {}
        self._bound_by: dict[str, str] = {}

    def __getitem__(self, letter: str) -> int:
        """The size of a bound letter."""
        return self.sizes[letter]

    def bind(self, name: str, x, letters: str) -> None:
        """Checks the shape of argument `name` against letters such as "B T H".

        Args:
          name: the argument's name, for messages.
          x: array.
          letters: one letter or integer an axis, separated by spaces.

        Raises:
          ValueError: wrong rank, or a letter already bound to another size.
        """
        axes = letters.split()
        if x is None:
            raise ValueError(
                f"{self.op}: {name} must be an array of shape"
                f" [{', '.join(axes)}], got None"
            )
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise ValueError(
                f"{self.op}: {name} must be an array of shape"
                f" [{', '.join(axes)}], got {type(x).__name__}"
            )
        shape = tuple(x.shape)
        if len(shape) != len(axes):
            raise ValueError(
                f"{self.op}: {name} must have shape [{', '.join(axes)}], got"
                f" shape {shape}"
            )
        for axis, size in zip(axes, shape, strict=True):
            expected = int(axis) if axis.isdigit() else self.sizes.get(axis)
            if expected is not None and expected != size:
                origin = self._bound_by.get(axis)
                known = ""
                if origin:
                    known = f" ({axis} = {expected} from {origin})"
                raise ValueError(
                    f"{self.op}: {name} must have shape [{', '.join(axes)}]"
                    f"{known}, got shape {shape}"
                )
            if not axis.isdigit() and axis not in self.sizes:
                self.sizes[axis] = size
                self._bound_by[axis] = name

    def divides(self, small: str, large: str, of: str) -> None:
        """Requires size `large` to be a positive multiple of size `small`."""
        a, b = self.sizes[small], self.sizes[large]
        if a == 0 or b % a:
            raise ValueError(
                f"{self.op}: {self._bound_by[large]} has {b} {of} and"
                f" {self._bound_by[small]} has {a}; the first must be a"
                " multiple of the second"
            )


def accumulation_dtype(op: str, **inputs):
    """dtype in which an operator accumulates: float32, or float64.

    Args:
      op: the operator, for messages.
      **inputs: float arrays by argument name; None is skipped.

    Returns:
      float32 for any mix of float16, bfloat16 and float32; float64 where every
      input is float64.

    Raises:
      ValueError: an input is no float, or float64 is mixed with others.
    """
    dtypes = {n: jnp.result_type(x) for n, x in inputs.items() if x is not None}
    for name, dtype in dtypes.items():
        if dtype.name not in FLOATS:
            raise ValueError(
                f"{op}: {name} must be one of {', '.join(FLOATS)}, got"
                f" {dtype.name}"
            )
    wide = [n for n, d in dtypes.items() if d == jnp.float64]
    if wide and len(wide) < len(dtypes):
        narrow = {n: d.name for n, d in dtypes.items() if n not in wide}
        raise ValueError(
            f"{op}: float64 needs every input in float64; {', '.join(wide)} "
            f"came in float64 but {narrow} did not: cast one or the other"
        )
    return jnp.float64 if wide else jnp.float32


def precision(*inputs) -> jax.lax.Precision:
    """Precision of matrix products on accelerators.

    float32 inputs get full float32 products; half inputs carry at most 11 bits
    of mantissa, which the tensor cores' default keeps.
    """
    half = any(
        jnp.result_type(x).itemsize == 2 for x in inputs if x is not None
    )
    return jax.lax.Precision.DEFAULT if half else jax.lax.Precision.HIGHEST


def check_state_dtype(op: str, state_dtype, accumulate, name="state_dtype"):
    """The dtype of the returned state: `accumulate` unless asked otherwise."""
    if state_dtype is None:
        return accumulate
    try:
        dtype = jnp.dtype(state_dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in FLOATS:
        came = repr(state_dtype) if dtype is None else dtype.name
        raise ValueError(
            f"{op}: {name} must be one of {', '.join(FLOATS)} or None, "
            f"got {came}"
        )
    check_available(op, name, dtype)
    return dtype


def check_available(op: str, name: str, dtype) -> None:
    """Refuses a dtype that JAX would narrow in silence."""
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{op}: {name} is {dtype.name}, which JAX narrows unless 64-bit"
            " numbers are on; set jax_enable_x64, or leave it out"
        )


def check_scale(op: str, scale, key_width: int) -> float:
    """The scale of q: K**-0.5 unless a finite Python number is given."""
    if scale is None and key_width == 0:
        raise ValueError(
            f"{op}: K must be at least 1 for the default scale K**-0.5, got 0;"
            " give scale"
        )
    if scale is None:
        return key_width**-0.5
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise ValueError(
            f"{op}: scale must be a Python number or None, got {scale!r}; fold"
            " a traced scale into q"
        )
    if not math.isfinite(scale):
        raise ValueError(f"{op}: scale must be finite, got {scale}")
    return float(scale)


def check_segment_ids(op: str, shapes: Shapes, segment_ids) -> None:
    """Requires int32 [B, T] segment ids (or None)."""
    if segment_ids is None:
        return
    shapes.bind("segment_ids", segment_ids, "B T")
    if jnp.result_type(segment_ids) != jnp.int32:
        raise ValueError(
            f"{op}: segment_ids must be int32 (-1 for padding), got "
            f"{jnp.result_type(segment_ids).name}"
        )


def choose_form(
    op: str,
    options: Options,
    *,
    length: int,
    recurrent_up_to: int,
    default_chunk: int,
    forms: Collection[str] = ("recurrent", "chunk", "parallel"),
) -> tuple[str, int]:
    """Settles form and chunk size, and refuses options without an object.

    Args:
      op: the operator, for messages.
      options: the caller's.
      length: T, on this device.
      recurrent_up_to: with `form=None`, the largest T run step by step.
      default_chunk: chunk size where none is given.
      forms: the forms the operator has.

    Returns:
      (form, chunk size).

    Raises:
      ValueError: an unknown or contradictory choice.
    """
    form, chunk_size = options.form, options.chunk_size
    if form is not None and form not in forms:
        raise ValueError(
            f"{op}: form must be one of {', '.join(forms)} or None, got "
            f"{form!r}"
        )
    if chunk_size is not None:
        if form not in (None, "chunk"):
            raise ValueError(
                f"{op}: chunk_size={chunk_size} has no meaning with form="
                f"{form!r}; leave it out, or use form='chunk'"
            )
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
            raise ValueError(
                f"{op}: chunk_size must be an int, got {chunk_size!r}"
            )
        if chunk_size < 1:
            raise ValueError(
                f"{op}: chunk_size must be at least 1, got {chunk_size}"
            )
        form = "chunk"
    check_axis(op, options.axis_name, options.exchange, form)
    if form is None:
        form = "recurrent" if length <= recurrent_up_to else "chunk"
    return form, chunk_size or default_chunk


def check_axis(
    op: str,
    axis_name: str | None,
    exchange: str | None,
    form: str | None = None,
) -> None:
    """Refuses an exchange without an axis, and a sharded parallel form."""
    if axis_name is None:
        if exchange is not None:
            raise ValueError(
                f"{op}: exchange={exchange!r} needs axis_name, the mesh axis "
                "along which time is sharded"
            )
        return
    if not isinstance(axis_name, str):
        raise ValueError(
            f"{op}: axis_name must be the name of a mesh axis or None, got"
            f" {axis_name!r}"
        )
    if form == "parallel":
        raise ValueError(
            f"{op}: form='parallel' cannot run with axis_name={axis_name!r};"
            " use 'chunk' or 'recurrent'"
        )
    if exchange is not None and exchange not in recurrence.EXCHANGES:
        raise ValueError(
            f"{op}: exchange must be one of "
            f"{', '.join(recurrence.EXCHANGES)} or None, got {exchange!r}"
        )
    try:
        jax.lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"{op}: axis_name={axis_name!r} is no mesh axis here; call the "
            "operator inside jax.shard_map over a mesh that has it"
        ) from error


def align_inputs(inputs: dict, axis_name: str | None) -> dict:
    """Lets all arrays vary over the union of their mesh axes.

    Args:
      inputs: pytrees by name; None is kept.
      axis_name: mesh axis of the sequence, added to the union.

    Returns:
      The same dictionary, cast (see `recurrence.varying`).
    """
    axes = recurrence.varying_axes(inputs)
    if axis_name is not None:
        axes = axes | {axis_name}
    return recurrence.match_varying(inputs, axes)


def round_up(x: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `x`."""
    return -(-x // multiple) * multiple
