"""Sums carried as two floats: the rounded one, and what it loses."""

import jax
import jax.numpy as jnp


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b as rounded sum and its exact error (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over time, to 48 bits.

    Args:
      x: [B, T, ...], finite.

    Returns:
      (high, low), [B, ...] each, to be added; the derivative is that of high,
      low is a constant.
    """
    plain = jnp.sum(x, axis=1)
    high = jax.lax.stop_gradient(x)
    low = jnp.zeros_like(high)
    # Neighbours in pairs: log2(T) levels of half as many numbers each.
    while high.shape[1] > 1:
        if high.shape[1] % 2:
            odd = ((0, 0), (0, 1)) + ((0, 0),) * (x.ndim - 2)
            high, low = jnp.pad(high, odd), jnp.pad(low, odd)
        low = low[:, ::2] + low[:, 1::2]
        high, error = two_sum(high[:, ::2], high[:, 1::2])
        low = low + error
    exact = high[:, 0] - jax.lax.stop_gradient(plain)
    return plain, exact + low[:, 0]
