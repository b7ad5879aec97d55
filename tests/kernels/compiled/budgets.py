"""What each operator may cost on a GPU: launches, and memory beside its arrays.

Counted in the program that XLA compiles for an H200.  Temporary bytes are those
of the gradient's program, as a multiple of the bytes of its inputs and outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import ops


class Budget(NamedTuple):
    """One operator at one shape.

    Attributes:
      name: what is tested.
      run: takes the inputs, returns (y, state).
      inputs: shapes and dtypes; floating ones are differentiated.
      kernels: Triton launches, forward alone and forward with gradient.
      launches: all launches, likewise.
      temporary: of the gradient, over its inputs and outputs.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    kernels: tuple[int, int]
    launches: tuple[int, int]
    temporary: float


def _of(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def _convolution(x, weight, bias, initial_state):
    return ops.short_convolution(
        x,
        weight,
        bias=bias,
        activation="silu",
        initial_state=initial_state,
        implementation="triton",
    )


def _packed(x, weight, segment_ids):
    return ops.short_convolution(
        x, weight, segment_ids=segment_ids, implementation="triton"
    )


def _norm(x, gate, weight):
    y = ops.gated_rms_norm(
        x, gate, weight, gate_first=True, implementation="triton"
    )
    return y, None


def _gated(q, k, v, log_decay, initial_state):
    return ops.gated_linear_attention(
        q,
        k,
        v,
        log_decay,
        initial_state=initial_state,
        implementation="triton",
    )


def _packed_gated(q, k, v, log_decay, segment_ids):
    return ops.gated_linear_attention(
        q, k, v, log_decay, segment_ids=segment_ids, implementation="triton"
    )


def _linear(q, k, v):
    return ops.linear_attention(q, k, v, implementation="triton")


def _retention(q, k, v):
    return ops.retention(q, k, v, implementation="triton")


def _lightning(q, k, v):
    return ops.lightning_attention(q, k, v, implementation="triton")


def _ssd(x, dt, A, B, C):
    return ops.ssd(x, dt, A, B, C, implementation="triton")


_QKV = (_of(jnp.bfloat16, 2, 16384, 16, 128),) * 3
_STATE = _of(jnp.float32, 2, 16, 128, 128)
_X = _of(jnp.bfloat16, 2, 16384, 2048)
_W = _of(jnp.float32, 4, 2048)

BUDGETS = (
    Budget(
        "short_convolution",
        _convolution,
        (_X, _W, _of(jnp.float32, 2048), _of(jnp.float32, 2, 3, 2048)),
        (1, 3),
        (2, 6),
        0.01,
    ),
    Budget(
        "short_convolution, packed",
        _packed,
        (_X, _W, _of(jnp.int32, 2, 16384)),
        (3, 4),
        (4, 6),
        0.01,
    ),
    Budget(
        "gated_rms_norm",
        _norm,
        (_X, _X, _of(jnp.float32, 2048)),
        (1, 2),
        (1, 3),
        0.01,
    ),
    Budget(
        "gated_linear_attention",
        _gated,
        (*_QKV, _of(jnp.float32, 2, 16384, 16), _STATE),
        (2, 5),
        (2, 6),
        0.6,
    ),
    # Padding is masked out of all inputs first, and of all gradients last.
    Budget(
        "gated_linear_attention, packed",
        _packed_gated,
        (*_QKV, _of(jnp.float32, 2, 16384, 16), _of(jnp.int32, 2, 16384)),
        (2, 5),
        (8, 13),
        0.8,
    ),
    Budget(
        "gated_linear_attention, channels",
        _gated,
        (*_QKV, _of(jnp.float32, 2, 16384, 16, 128), _STATE),
        (3, 6),
        (3, 6),
        0.8,
    ),
    Budget("linear_attention", _linear, _QKV, (2, 5), (3, 6), 0.6),
    Budget("retention", _retention, _QKV, (2, 5), (3, 6), 0.6),
    Budget("lightning_attention", _lightning, _QKV, (2, 5), (3, 6), 0.6),
    Budget(
        "ssd",
        _ssd,
        (
            _of(jnp.bfloat16, 2, 16384, 32, 64),
            _of(jnp.float32, 2, 16384, 32),
            _of(jnp.float32, 32),
            *(_of(jnp.bfloat16, 2, 16384, 1, 128),) * 2,
        ),
        (2, 5),
        (6, 12),
        1.2,
    ),
)
