"""Parameter initialisers that the papers name and Flax does not have."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp


def scaled(
    initializer: nn.initializers.Initializer, factor: float
) -> nn.initializers.Initializer:
    """`initializer` times a constant."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        return factor * initializer(key, shape, dtype)

    return init


def xavier(gain: float) -> nn.initializers.Initializer:
    """Xavier uniform with a gain; RetNet's projections use 2**-2.5."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as Mamba's projections."""
    return uniform(1 / math.sqrt(fan_in))


def log_uniform(low: float, high: float) -> nn.initializers.Initializer:
    """log A with A ~ U(low, high); Mamba-2 has U(1, 16) (arXiv 2405.21060).

    With low = 0, A is at least 1e-6, so that its log is a number.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        A = jax.random.uniform(key, shape, dtype, low, high)
        return jnp.log(jnp.maximum(A, 1e-6))

    return init


def inverse_softplus_step(
    low: float = 1e-3, high: float = 0.1, floor: float = 1e-4
) -> nn.initializers.Initializer:
    """Bias b with softplus(b) log-uniform in [low, high] and at least floor.

    The time step of Mamba (arXiv 2312.00752).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        log_step = jax.random.uniform(
            key, shape, dtype, math.log(low), math.log(high)
        )
        step = jnp.maximum(jnp.exp(log_step), floor)
        return step + jnp.log(-jnp.expm1(-step))

    return init
