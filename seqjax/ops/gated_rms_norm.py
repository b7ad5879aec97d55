"""Root-mean-square norm with a gate, the read-out of most linear mixers.

    y = rms(x) weight a(gate)    or    y = rms(x a(gate)) weight
    rms(x) = x / sqrt(mean(x^2) + eps)

RMSNorm: arXiv 1910.07467.  The order is part of the mixer: RetNet, GLA and
lightning normalise and then gate, Mamba-2 gates and then normalises.  It knows
no time, so it has no state and nothing to exchange along a sharded sequence.
As a kernel it is one launch each way and keeps nothing but its inputs; plain
JAX keeps float32 copies of wide rows for the gradient.
"""

from collections.abc import Sequence
import math
import numbers

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax_kernels import launch
from seqjax_kernels.pointwise import norm

_OP = "gated_rms_norm"
_ACTIVATIONS = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}
# A program of the kernel holds whole rows in registers.
_MOST_CHANNELS = 8192
_MOST_GROUPS = 65535  # the second axis of a CUDA grid


def gated_rms_norm(
    x: jax.Array,
    gate: jax.Array,
    weight: jax.Array,
    *,
    eps: float = 1e-5,
    activation: str = "silu",
    gate_first: bool = False,
    groups: int = 1,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Normalises along the last axis and gates, in either order.

    Args:
      x: [..., D] float16, bfloat16, float32 or (all inputs) float64.
      gate: [..., D], before its activation.
      weight: [D].
      eps: a Python number of 0 or more, added to the mean square, which is
        taken in float32 (float64).
      activation: of the gate, "silu" or "sigmoid".
      gate_first: True for rms(x a(gate)), False for rms(x) a(gate).
      groups: the last axis is normalised in that many groups.
      implementation: "triton" (NVIDIA GPUs, no float64, at most 8192 channels
        a group and 65535 groups; differentiable once), "xla", a list of names,
        or None for the first of these that can run.

    Returns:
      [..., D] in the dtype of x.

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    shapes.bind("weight", weight, "D")
    for name, value in (("x", x), ("gate", gate)):
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        if not is_array or value.shape[-1:] != weight.shape:
            came = value.shape if is_array else type(value).__name__
            raise ValueError(
                f"{_OP}: {name} must be an array of shape [..., D]"
                f" (D = {shapes['D']} from weight), got {came}"
            )
    if gate.shape != x.shape:
        raise ValueError(
            f"{_OP}: gate must have the shape of x, {x.shape}, got {gate.shape}"
        )
    eps = _check_options(eps, activation, gate_first, groups, shapes["D"])
    _contract.accumulation_dtype(_OP, x=x, gate=gate, weight=weight)
    inputs = _contract.align_inputs(dict(x=x, gate=gate, weight=weight), None)
    run = _dispatch.choose(_OP, implementation, **inputs, groups=groups)
    return run(
        **inputs,
        eps=eps,
        activation=activation,
        gate_first=gate_first,
        groups=groups,
    )


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x over its root mean square along the last axis, in float32.

    Args:
      x: [..., D], any float dtype.
      eps: added to the mean square.

    Returns:
      [..., D], float32 (float64 for float64 input).
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + eps)


def run_xla(x, gate, weight, *, eps, activation, gate_first, groups):
    """The norm in plain JAX; the reference of the kernel."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    a = _ACTIVATIONS[activation](gate.astype(y.dtype))
    if gate_first:
        y = y * a
    grouped = y.reshape(*y.shape[:-1], groups, y.shape[-1] // groups)
    y = rms_normalize(grouped, eps).reshape(y.shape)
    y = y * weight.reshape((1,) * (y.ndim - 1) + weight.shape)
    return (y if gate_first else y * a).astype(x.dtype)


def _check_options(eps, activation, gate_first, groups, width) -> float:
    """Refuses options that do not fit; returns eps."""
    number = isinstance(eps, numbers.Real) and not isinstance(eps, bool)
    if not number or not 0 <= float(eps) < math.inf:
        raise ValueError(
            f"{_OP}: eps must be a Python number, finite and at least 0, got"
            f" {eps!r}"
        )
    if activation not in tuple(_ACTIVATIONS):
        raise ValueError(
            f"{_OP}: activation must be one of {', '.join(_ACTIVATIONS)}, got"
            f" {activation!r}"
        )
    if not isinstance(gate_first, bool):
        raise ValueError(
            f"{_OP}: gate_first must be True or False, got {gate_first!r}"
        )
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise ValueError(f"{_OP}: groups must be an int, got {groups!r}")
    if groups < 1 or width % groups:
        raise ValueError(
            f"{_OP}: groups must be at least 1 and divide D = {width}, got"
            f" {groups}"
        )
    return float(eps)


def _triton_refuses(platform, x, gate, weight, groups):
    del platform, gate
    if x.dtype == jnp.float64:
        return "takes no float64"
    if x.size == 0:
        return "takes no empty x"
    channels = weight.shape[0] // groups
    if channels > _MOST_CHANNELS:
        most = _MOST_CHANNELS
        return f"takes at most {most} channels a group, got {channels}"
    if groups > _MOST_GROUPS:
        return f"takes at most {_MOST_GROUPS} groups, got {groups}"
    return launch.why_not()


_dispatch.IMPLEMENTATIONS[_OP] = {
    "triton": _dispatch.Implementation(norm.gated_rms_norm, _triton_refuses),
    "xla": _dispatch.Implementation(run_xla),
}
