"""Operators and shapes of the GPU benchmark, with what each must move."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple
import zlib

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


SHAPES = (
    Shape(8, 256, 16, 128),
    Shape(8, 1024, 16, 64),
    Shape(4, 2048, 16, 128),
    Shape(8, 2048, 32, 256),
    Shape(1, 8192, 96, 128),
    Shape(2, 16384, 16, 128),
    Shape(1, 131072, 16, 128),
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
      peer: name of the function of flash-linear-attention, None for none.
    """

    name: str
    run: Callable[[dict[str, Any], str | None], tuple[Any, Any]]
    shapes: Callable[[Shape], dict[str, tuple[tuple[int, ...], str]]]
    flops: Callable[[Shape], float]
    peer: str | None = None


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


CASES = (
    Case(
        "linear_attention",
        _named(ops.linear_attention),
        tokens,
        _attention_flops,
        "linear_attn",
    ),
    Case(
        "retention",
        _named(ops.retention),
        tokens,
        _attention_flops,
        "retention",
    ),
    Case(
        "simple_gla",
        _named(ops.gated_linear_attention),
        functools.partial(tokens, gate="head"),
        _attention_flops,
        "simple_gla",
    ),
    Case(
        "gla",
        _named(ops.gated_linear_attention),
        functools.partial(tokens, gate="channel"),
        _attention_flops,
        "gla",
    ),
    Case("ssd", _ssd, _ssd_shapes, _attention_flops),
    Case(
        "short_convolution",
        _named(ops.short_convolution, activation="silu"),
        _convolution_shapes,
        lambda shape: 0.0,
    ),
)


def shapes_of(case: Case, shape: Shape):
    """{name: (shape, kind)} of a case; a decode step has a state too."""
    shapes = case.shapes(shape)
    if shape.length > 1:
        return shapes
    if case.name == "short_convolution":
        width, channels = shapes["weight"][0]
        state = (shape.batch, width - 1, channels)
    else:
        state = (shape.batch, shape.heads, shape.width, shape.width)
    return shapes | {"initial_state": (state, "state")}


def make_inputs(case: Case, shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a case in float32, as they are rounded for the device.

    Cases of one shape share them.
    """
    return {
        name: _array(name, size, kind, seed)
        for name, (size, kind) in shapes_of(case, shape).items()
    }


# Gigabytes for the largest shape, some seconds to make, and six cases take them
# one after another.
@functools.lru_cache(maxsize=8)
def _array(name: str, size: tuple[int, ...], kind: str, seed: int):
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    value = rng.standard_normal(size, np.float32)
    if kind == "gate":
        value = -np.log1p(np.exp(-value - 3))
    elif kind == "step":
        value = 0.1 * np.log1p(np.exp(value))
    elif kind == "token":
        value = np.asarray(value.astype(jnp.bfloat16), np.float32)
    return value


def dtype_of(kind: str) -> Any:
    """In which dtype an input of a kind reaches the operator."""
    return jnp.bfloat16 if kind == "token" else jnp.float32


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
