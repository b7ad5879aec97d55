"""Root-mean-square norms, plain and gated.

    rms(x) = x / sqrt(mean(x^2) + eps) * scale

RMSNorm: arXiv 1910.07467.  Where a norm is gated, the order is part of the
mixer: RetNet, GLA and lightning normalise and then gate; Mamba-2 gates and
then normalises.  Statistics are taken in float32 (float64 for float64 input).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of statistics and gates: float32, float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def l2_normalize(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x over its length, x / sqrt(sum(x^2) + eps), along the last axis.

    Args:
      x: [..., D], any float dtype.
      eps: added to the sum of squares.

    Returns:
      [..., D] in the dtype of x.
    """
    y = x.astype(wide(x.dtype))
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    return (y * jax.lax.rsqrt(square + eps)).astype(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm over the last axis with a learned scale [D], at first 1.

    Attributes:
      eps: added to the mean square.
      zero_centred: whether the parameter is the scale - 1 (Gemma, Qwen3-Next).
    """

    eps: float = 1e-5
    zero_centred: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., D]; returns the dtype of x."""
        init = nn.initializers.ones
        if self.zero_centred:
            init = nn.initializers.zeros
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        y = ops.rms_normalize(x, self.eps)
        scale = expand(scale, y)
        if self.zero_centred:
            scale = 1 + scale
        return (y * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with a learned scale and bias [D].

    Attributes:
      eps: added to the variance.
      use_bias: whether there is a bias.
    """

    eps: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., D]; returns the dtype of x."""
        y = x.astype(wide(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = ops.rms_normalize(y, self.eps)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape = x.shape[-1:]
        y = y * expand(self.param("scale", ones, shape, jnp.float32), y)
        if self.use_bias:
            y = y + expand(self.param("bias", zeros, shape, jnp.float32), y)
        return y.astype(x.dtype)


class GatedRMSNorm(nn.Module):
    """RMS norm and a gate, in either order.

    Attributes:
      activation: of the gate, "silu" or "sigmoid".
      gate_first: True for rms(x * act(gate)) as Mamba-2; False for
        rms(x) * act(gate) as RetNet and GLA.
      groups: the last axis is normalised in that many groups.
      eps: added to the mean square.
    """

    activation: str = "silu"
    gate_first: bool = False
    groups: int = 1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        """Normalises x [..., D], gate of the same shape; dtype of x."""
        scale = self.param(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32
        )
        dtype = wide(x.dtype)
        return ops.gated_rms_norm(
            x,
            gate.astype(dtype) if dtype == jnp.float64 else gate,
            scale.astype(dtype),
            eps=self.eps,
            activation=self.activation,
            gate_first=self.gate_first,
            groups=self.groups,
        )


class HeadLayerNorm(nn.Module):
    """Layer norm of each head, with a learned scale and bias for every channel.

    It is the group norm of RWKV and, without bias, the norm of mLSTM.

    Attributes:
      eps: added to the variance.
      use_bias: whether there is a bias.
    """

    eps: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [..., H, V] along V; returns the dtype of x."""
        y = x.astype(wide(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(y * y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(variance + self.eps)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape = x.shape[-2:]
        y = y * expand(self.param("scale", ones, shape, jnp.float32), y)
        if self.use_bias:
            y = y + expand(self.param("bias", zeros, shape, jnp.float32), y)
        return y.astype(x.dtype)


def expand(scale: jax.Array, like: jax.Array) -> jax.Array:
    """`scale` with leading axes of length 1, as many axes as `like` has."""
    return scale.reshape((1,) * (like.ndim - scale.ndim) + scale.shape)
