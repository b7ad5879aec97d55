"""Nonlinearities of channel mixers by name."""

from collections.abc import Callable
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
ACTIVATIONS = get_args(Activation)


def named(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of a name.

    Args:
      name: "silu", "gelu" (by the error function), "gelu_tanh" (its tanh
        approximation), "relu" or "relu2" (its square).

    Raises:
      ValueError: an unknown name.
    """
    known = {
        "silu": jax.nn.silu,
        "gelu": _gelu,
        "gelu_tanh": jax.nn.gelu,
        "relu": jax.nn.relu,
        "relu2": _squared_relu,
    }
    if name not in known:
        raise ValueError(
            f"activation must be one of {ACTIVATIONS}, got {name!r}"
        )
    return known[name]


def _gelu(x: jax.Array) -> jax.Array:
    return x * _normal(x)


@jax.custom_jvp
def _normal(x: jax.Array) -> jax.Array:
    """The distribution of a normal variable.

    With a derivative of its own, since JAX 0.12 cannot differentiate erf inside
    `jax.shard_map`.
    """
    return jax.lax.erfc(-x * math.sqrt(0.5)) / 2


@_normal.defjvp
def _normal_slope(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    return _normal(x), t * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _squared_relu(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))
