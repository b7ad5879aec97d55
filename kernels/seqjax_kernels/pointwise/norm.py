"""Gated RMS norm, forward and backward (RMSNorm: arXiv 1910.07467).

    y = x / rms(x) weight a(gate)    or    y = u / rms(u) weight, u = x a(gate)

One launch each way; backward keeps only the inputs.  Statistics in float32.
Weak at rows of more than 4096 channels: a row is held in registers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax_kernels import batching
from seqjax_kernels import launch
from seqjax_kernels.pointwise import configs

ACTIVATIONS = ("silu", "sigmoid")


class _Static(NamedTuple):
    eps: float
    activation: str
    gate_first: bool
    groups: int
    launcher: str | None


def gated_rms_norm(
    x: jax.Array,
    gate: jax.Array,
    weight: jax.Array,
    *,
    eps: float = 1e-5,
    activation: str = "silu",
    gate_first: bool = False,
    groups: int = 1,
    launcher: str | None = None,
) -> jax.Array:
    """Normalises along the last axis and gates; differentiable once, reverse.

    Args:
      x: [..., D] float16, bfloat16 or float32.
      gate: of the shape of x.
      weight: [D].
      eps: added to the mean square.
      activation: of the gate, "silu" or "sigmoid".
      gate_first: True for rms(x a(gate)), False for rms(x) a(gate).
      groups: the last axis is normalised in that many groups.
      launcher: as in `launch.call`.

    Returns:
      [..., D] in the dtype of x.

    Raises:
      ValueError: arguments that do not fit.
    """
    width = x.shape[-1]
    if gate.shape != x.shape or weight.shape != (width,):
        raise ValueError(
            f"gate must have the shape of x and weight that of its last axis,"
            f" got x {x.shape}, gate {gate.shape}, weight {weight.shape}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {ACTIVATIONS}, got {activation!r}"
        )
    if groups < 1 or width % groups:
        raise ValueError(f"groups must divide {width}, got {groups}")
    static = _Static(eps, activation, gate_first, groups, launcher)
    # A batch of one launch must not be mixed with another's under vmap.
    batch = x.shape[0] if x.ndim > 2 else 1
    rows = math.prod(x.shape[:-1]) // batch if batch else 0
    shape = (batch, rows, width)
    y: Any = _norm(static, x.reshape(shape), gate.reshape(shape), weight)
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static, x, gate, weight):
    return _forward(static, x, gate, weight)[0]


def _forward(static, x, gate, weight):
    config, constants = _settings(static, x)

    def run(x, gate, weight):
        from seqjax_kernels.pointwise import norm_kernels

        return launch.call(
            norm_kernels.forward_kernel,
            x,
            gate,
            weight,
            outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
            grid=(x.shape[0] * -(-x.shape[1] // config.rows), static.groups, 1),
            constants=constants,
            num_warps=config.num_warps,
            launcher=static.launcher,
        )

    (y,) = batching.fold(run, (True, True, False))(x, gate, weight)
    return y, (x, gate, weight)


def _backward(static, kept, y_bar):
    x, gate, weight = kept
    config, constants = _settings(static, x, backward=True)
    tiles = max(1, min(config.tiles, x.shape[1] // (16 * config.rows)))

    def run(x, gate, weight, y_bar):
        from seqjax_kernels.pointwise import norm_kernels

        batch, rows, width = x.shape
        runs = -(-rows // (config.rows * tiles))
        return launch.call(
            norm_kernels.backward_kernel,
            x,
            gate,
            weight,
            y_bar,
            outputs=[
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                jax.ShapeDtypeStruct(x.shape, gate.dtype),
                jax.ShapeDtypeStruct((batch, runs, width), jnp.float32),
            ],
            grid=(batch * runs, static.groups, 1),
            constants=constants | dict(TILES=tiles),
            num_warps=config.num_warps,
            launcher=static.launcher,
        )

    x_bar, gate_bar, weight_bar = batching.fold(run, (True, True, False, True))(
        x, gate, weight, y_bar
    )
    return x_bar, gate_bar, jnp.sum(weight_bar, (0, 1)).astype(weight.dtype)


_norm.defvjp(_forward, _backward)


def _settings(static, x, backward=False):
    size = x.shape[-1] // static.groups
    config = configs.norm(size, backward)
    return config, dict(
        R=x.shape[1],
        N=size,
        GROUPS=static.groups,
        EPS=static.eps,
        SILU=static.activation == "silu",
        BEFORE=static.gate_first,
        BR=config.rows,
        BN=configs.power_of_two(max(size, 16)),
    )
