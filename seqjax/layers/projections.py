"""The linear maps into heads and out of them, without biases."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import initializers

Initializer = nn.initializers.Initializer

_LECUN = nn.initializers.lecun_normal()


def to_heads(
    x: jax.Array,
    heads: int,
    features: int,
    dtype: jnp.dtype,
    name: str,
    kernel_init: Initializer = _LECUN,
) -> jax.Array:
    """Projects x [B, T, D] to [B, T, heads, features]; call it in a module."""
    return nn.DenseGeneral(
        (heads, features),
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )(x)


def from_heads(
    o: jax.Array,
    width: int,
    dtype: jnp.dtype,
    residual_scale: float,
    kernel_init: Initializer = _LECUN,
) -> jax.Array:
    """Projects o [B, T, H, V] to [B, T, width]; call it in a module.

    The initial kernel is multiplied by `residual_scale`.
    """
    return nn.DenseGeneral(
        width,
        axis=(-2, -1),
        use_bias=False,
        dtype=dtype,
        kernel_init=initializers.scaled(kernel_init, residual_scale),
        name="out",
    )(o)
