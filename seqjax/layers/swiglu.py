"""SwiGLU: the gated channel mixer of every block (arXiv 2002.05202).

    y = W_down (silu(W_gate x) * (W_up x))

Cost 6 * D * width FLOPs a token.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import initializers


class SwiGLU(nn.Module):
    """Gated MLP.

    Attributes:
      width: hidden width.
      dtype: of the computation; parameters are float32.
      residual_scale: factor on the initial output projection.
    """

    width: int
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to [..., D]."""
        gate = nn.Dense(
            self.width, use_bias=False, dtype=self.dtype, name="gate"
        )(x)
        up = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="up")(
            x
        )
        return nn.Dense(
            x.shape[-1],
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                nn.initializers.lecun_normal(), self.residual_scale
            ),
            name="down",
        )(nn.silu(gate) * up)
