"""Learned log decays with a rate and a time step, as Mamba-2 has them.

    log_decay = -exp(A_log) softplus(W x + b)

Gated DeltaNet has one a head with A ~ U(0, 16), Kimi Delta Attention one a key
channel with A ~ U(1, 16) and a low rank W, or with a floor (`gates`).  b is
drawn as Mamba's time step.  A_log and b are spared by weight decay.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import gates
from seqjax.layers import initializers
from seqjax.layers import norms


class StepDecay(nn.Module):
    """Log decays from the layer's input.

    Attributes:
      heads: H.
      channels: K, decays of a head; None for one.
      rank: inner width of W; None for a full matrix.
      A_range: A is drawn uniformly from it, one a head.
      floor: below 0: the decay is floor * sigmoid(exp(A_log) (W x + b))
        instead, and A starts at 1.
      dtype: of the inner map; the last one is float32.
    """

    heads: int
    channels: int | None = None
    rank: int | None = None
    A_range: tuple[float, float] = (0.0, 16.0)
    floor: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, H], or with channels [B, T, H, K], from x [B, T, D]."""
        wide = norms.wide(self.dtype)
        if self.rank is not None:
            x = nn.Dense(
                self.rank, use_bias=False, dtype=self.dtype, name="inner"
            )(x)
        shape = (self.heads,)
        if self.channels is not None:
            shape = (self.heads, self.channels)
        step = nn.DenseGeneral(shape, use_bias=False, dtype=wide, name="step")(
            x
        )
        bias = self.param(
            "bias", initializers.inverse_softplus_step(), shape, jnp.float32
        )
        A_init = nn.initializers.zeros
        if self.floor is None:
            A_init = initializers.log_uniform(*self.A_range)
        A_log = self.param("A_log", A_init, shape[:1], jnp.float32)
        A_log = A_log.reshape((1, 1, -1) + (1,) * (len(shape) - 1))
        bias = bias[None, None]
        if self.floor is None:
            return gates.softplus_decay(step, A_log, bias)
        return gates.floored_decay(step, A_log, bias, self.floor)
