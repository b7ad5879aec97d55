"""Operators and shapes of the GPU benchmark, with what each must move."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops

CHUNK = 64  # of which the count of FLOPs is
BYTES = 2  # bfloat16


class Shape(NamedTuple):
    """B, T, H and D = K = V of one row."""

    batch: int
    length: int
    heads: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


# Those that tell most first.
SHAPES = (
    Shape(2, 16384, 16, 128),
    Shape(1, 8192, 96, 128),
    Shape(4, 2048, 16, 128),
    Shape(8, 1024, 16, 64),
    Shape(8, 2048, 32, 256),
    Shape(1, 131072, 16, 128),
    Shape(8, 256, 16, 128),
)
DECODE = Shape(128, 1, 16, 128)


class Case(NamedTuple):
    """One operator.

    Attributes:
      name: as printed.
      run: (arrays by name, implementation) -> (y, state); the arrays may hold
        an initial_state.
      shapes: Shape -> {name: (shape, kind)}, kind "token", "gate", "weight".
      flops: Shape -> matrix FLOPs of the chunked form, forward.
      state: whether it has one, and so a decode step.
    """

    name: str
    run: Callable[[dict[str, Any], str | None], tuple[Any, Any]]
    shapes: Callable[[Shape], dict[str, tuple[tuple[int, ...], str]]]
    flops: Callable[[Shape], float]
    state: bool = True


def tokens(shape: Shape, gate: str | None = None):
    """Shapes of q, k, v, and of a gate a "head" or a "channel"."""
    b, t, h, d = shape
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        name: ((b, t, h, d), "token") for name in ("q", "k", "v")
    }
    if gate is not None:
        full = (b, t, h, d) if gate == "channel" else (b, t, h)
        arrays["log_decay"] = (full, "gate")
    return arrays


def _attention_flops(shape: Shape) -> float:
    """Scores, their product with v, the write to the state and its read."""
    b, t, h, d = shape
    chunk = min(CHUNK, t)
    return 2.0 * b * t * h * d * (chunk + chunk + d + d)


def _softmax_flops(shape: Shape) -> float:
    b, t, h, d = shape
    return 2.0 * b * h * t * t * d  # two products, half of each masked


def _named(function, **options):
    def run(arrays, implementation):
        return function(**arrays, **options, implementation=implementation)

    return run


def _ssd(arrays, implementation):
    return ops.ssd(
        arrays["v"],
        arrays["dt"],
        -jnp.ones(arrays["v"].shape[2], arrays["dt"].dtype),
        arrays["k"],
        arrays["q"],
        initial_state=arrays.get("initial_state"),
        implementation=implementation,
    )


def _ssd_shapes(shape: Shape):
    b, t, h, d = shape
    return {
        "v": ((b, t, h, d), "token"),
        "dt": ((b, t, h), "step"),
        "k": ((b, t, 1, d), "token"),
        "q": ((b, t, 1, d), "token"),
    }


def _convolution_shapes(shape: Shape):
    b, t, h, d = shape
    return {"x": ((b, t, h * d), "token"), "weight": ((4, h * d), "weight")}


def _norm(arrays, implementation):
    return ops.gated_rms_norm(**arrays, implementation=implementation), None


def _norm_shapes(shape: Shape):
    kinds = {"x": "token", "gate": "token"}
    return {name: (tuple(shape), kind) for name, kind in kinds.items()} | {
        "weight": ((shape.width,), "weight")
    }


CASES = (
    Case(
        "linear_attention",
        _named(ops.linear_attention),
        tokens,
        _attention_flops,
    ),
    Case(
        "retention",
        _named(ops.retention),
        tokens,
        _attention_flops,
    ),
    Case(
        "simple_gla",
        _named(ops.gated_linear_attention),
        functools.partial(tokens, gate="head"),
        _attention_flops,
    ),
    Case(
        "gla",
        _named(ops.gated_linear_attention),
        functools.partial(tokens, gate="channel"),
        _attention_flops,
    ),
    Case("ssd", _ssd, _ssd_shapes, _attention_flops),
    Case(
        "short_convolution",
        _named(ops.short_convolution, activation="silu"),
        _convolution_shapes,
        lambda shape: 0.0,
    ),
    Case("gated_rms_norm", _norm, _norm_shapes, lambda shape: 0.0, state=False),
)


def named(name: str) -> Case:
    """The case of a name."""
    return next(c for c in CASES if c.name == name)


def shapes_of(case: Case, shape: Shape):
    """{name: (shape, kind)} of a case; a decode step has a state too."""
    shapes = case.shapes(shape)
    if shape.length > 1 or not case.state:
        return shapes
    if case.name == "short_convolution":
        width, channels = shapes["weight"][0]
        state = (shape.batch, width - 1, channels)
    else:
        state = (shape.batch, shape.heads, shape.width, shape.width)
    return shapes | {"initial_state": (state, "state")}


def make_inputs(case: Case, shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a case, in the dtypes in which they reach the operator.

    Cases of one shape share them.
    """
    return {
        name: _array(name, size, kind, seed)
        for name, (size, kind) in shapes_of(case, shape).items()
    }


# A quarter gigabyte in bfloat16 has no need of as many random numbers.
_PERIOD = 2**22


# Gigabytes for the largest shape, which the cases take one after another.
@functools.lru_cache(maxsize=8)
def _array(name: str, size: tuple[int, ...], kind: str, seed: int):
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    value = rng.standard_normal(min(math.prod(size), _PERIOD), np.float32)
    if kind == "gate":
        value = -np.log1p(np.exp(-value - 3))
    elif kind == "step":
        value = 0.1 * np.log1p(np.exp(value))
    return np.resize(value.astype(dtype_of(kind)), size)


def dtype_of(kind: str) -> Any:
    """In which dtype an input of a kind reaches the operator."""
    return jnp.bfloat16 if kind == "token" else jnp.float32


def structs(case: Case, shape: Shape) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a case's arrays, in order."""
    return [
        jax.ShapeDtypeStruct(size, dtype_of(kind))
        for size, kind in shapes_of(case, shape).values()
    ]


def functions(
    case: Case, shape: Shape, implementation: str
) -> tuple[Callable, Callable]:
    """What is timed, as functions of a case's arrays in order.

    Args:
      case: the operator.
      shape: at T = 1 a decode step, which gives its state too.
      implementation: as of the operator.

    Returns:
      (forward, both): `both` takes the cotangent of y in front of the arrays,
      and returns y and all gradients.
    """
    names = tuple(shapes_of(case, shape))

    def forward(*given):
        made = case.run(dict(zip(names, given, strict=True)), implementation)
        return made if shape.length == 1 else made[0]

    def both(y_bar, *given):
        y, back = jax.vjp(forward, *given)
        return y, *back(y_bar)

    return forward, both


def make_bar(case: Case, shape: Shape) -> np.ndarray:
    """The cotangent of y, which bfloat16 holds exactly."""
    size = out_shape(case, shape)
    return np.resize((np.arange(64) * 37 % 64 - 32) / 64, size).astype(
        jnp.bfloat16
    )


def out_shape(case: Case, shape: Shape) -> tuple[int, ...]:
    """Of y."""
    shapes = case.shapes(shape)
    return shapes["x" if "x" in shapes else "v"][0]


def moved_bytes(case: Case, shape: Shape, both: bool) -> float:
    """Least traffic: inputs and y once; with gradients all of it twice more.

    A decode step also writes its state.  Forward reads the inputs and writes y;
    backward reads the inputs and the cotangent of y, and writes a cotangent an
    input.
    """
    sizes = {
        name: math.prod(size) * jnp.dtype(dtype_of(kind)).itemsize
        for name, (size, kind) in shapes_of(case, shape).items()
    }
    out = math.prod(shape) * BYTES + sizes.get("initial_state", 0)
    inputs = float(sum(sizes.values()))
    return inputs + out + (2 * inputs + out if both else 0.0)


def needed_flops(case: Case, shape: Shape, both: bool) -> float:
    """Matrix FLOPs; backward has twice those of forward, and makes them again.

    The chunked form recomputes the scores, and so counts forward once more.
    """
    return case.flops(shape) * (4.0 if both else 1.0)


def softmax_flops(shape: Shape, both: bool) -> float:
    """Of causal softmax attention; backward has five products for two."""
    return _softmax_flops(shape) * (3.5 if both else 1.0)
