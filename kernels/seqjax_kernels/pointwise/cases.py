"""Calls whose kernels are compiled and held to their resources."""

import functools

import jax
import jax.numpy as jnp

from seqjax_kernels import registry
from seqjax_kernels.pointwise import convolution
from seqjax_kernels.pointwise import cumsum
from seqjax_kernels.pointwise import norm

_B, _T, _D, _W = 2, 4096, 2048, 4


def _of(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def _both(function, argnums):
    """Runs a function and its backward."""

    def run(*inputs):
        taken = [i for i in argnums if inputs[i] is not None]

        def chosen(*varied):
            full = list(inputs)
            for i, value in zip(taken, varied, strict=True):
                full[i] = value
            return function(*full)

        y, back = jax.vjp(chosen, *(inputs[i] for i in taken))
        return back(y)

    return run


def _packed(x, weight, initial, segment_ids):
    plan = convolution.make_plan(segment_ids, weight.shape[0])
    return convolution.short_convolution(
        x, weight, None, initial, plan, activation="silu"
    )


def _convolution(dtype):
    return (
        _of(dtype, _B, _T, _D),
        _of(jnp.float32, _W, _D),
        _of(jnp.float32, _D),
        _of(jnp.float32, _B, _W - 1, _D),
    )


def _norm(dtype, width):
    cells = _of(dtype, _B, _T, _D // width, width)
    return cells, cells, _of(jnp.float32, width)


_silu = functools.partial(convolution.short_convolution, activation="silu")
_first = functools.partial(norm.gated_rms_norm, gate_first=True)

CASES = (
    registry.Case(
        "convolution bf16",
        _both(_silu, (0, 1, 2, 3)),
        _convolution(jnp.bfloat16),
    ),
    registry.Case(
        "convolution fp32 plain",
        _both(convolution.short_convolution, (0, 1, 2, 3)),
        (*_convolution(jnp.float32)[:2], None, None),
    ),
    registry.Case(
        "convolution bf16 packed",
        _both(_packed, (0, 1, 2)),
        (
            *_convolution(jnp.bfloat16)[:2],
            _convolution(jnp.bfloat16)[3],
            _of(jnp.int32, _B, _T),
        ),
    ),
    registry.Case(
        "norm bf16 D128",
        _both(norm.gated_rms_norm, (0, 1, 2)),
        _norm(jnp.bfloat16, 128),
    ),
    registry.Case(
        "norm bf16 D2048 gate first",
        _both(_first, (0, 1, 2)),
        _norm(jnp.bfloat16, 2048),
    ),
    registry.Case(
        "norm bf16 D5120 gate first",
        _both(_first, (0, 1, 2)),
        (
            *(_of(jnp.bfloat16, _B, _T, 5120),) * 2,
            _of(jnp.float32, 5120),
        ),
    ),
    registry.Case(
        "norm fp32 D100 sigmoid",
        _both(
            functools.partial(norm.gated_rms_norm, activation="sigmoid"),
            (0, 1, 2),
        ),
        (
            _of(jnp.float32, _B, _T, 100),
            _of(jnp.float32, _B, _T, 100),
            _of(jnp.float32, 100),
        ),
    ),
    registry.Case(
        "cumsum fp32 C64",
        _both(functools.partial(cumsum.chunk_cumsum, chunk_size=64), (0,)),
        (_of(jnp.float32, _B, _T, 16),),
    ),
    registry.Case(
        "cumsum bf16 C16 channels",
        _both(functools.partial(cumsum.chunk_cumsum, chunk_size=16), (0,)),
        (_of(jnp.bfloat16, _B, _T, 16, 128),),
    ),
)

# Rows of more than 4096 channels leave a thread 128 registers.
SPILLS = {
    ("H200", "norm bf16 D5120 gate first: backward_kernel"): 92,
    ("A100", "norm bf16 D5120 gate first: backward_kernel"): 88,
    ("B200", "norm bf16 D5120 gate first: backward_kernel"): 104,
}
