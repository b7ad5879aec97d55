"""Nonlinearities of channel mixers by name."""

from collections.abc import Callable
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
    return jax.nn.gelu(x, approximate=False)


def _squared_relu(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))
