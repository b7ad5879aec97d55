"""SwiGLU, the gated channel mixer of every block, and its relatives.

    y = W_down (act(W_gate x) * (W_up x)),   without a gate: W_down act(W_up x)

SwiGLU is act = silu (arXiv 2002.05202).  Cost 6 * D * width FLOPs a token, 4
without a gate.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import activations
from seqjax.layers import initializers


class SwiGLU(nn.Module):
    """Gated MLP.

    Attributes:
      width: hidden width.
      dtype: of the computation; parameters are float32.
      residual_scale: factor on the initial output projection.
      activation: see `seqjax.layers.activations`.
      gated: whether there is a gate.
      use_bias: whether the projections have biases.
      gate_scale: factor on W_gate x.
      output_scale: factor on y.
    """

    width: int
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0
    activation: str = "silu"
    gated: bool = True
    use_bias: bool = False
    gate_scale: float = 1.0
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to [..., D]."""
        lecun = nn.initializers.lecun_normal()

        def dense(features: int, name: str, init=lecun) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=init,
                name=name,
            )

        act = activations.named(self.activation)
        if self.gated:
            gate = dense(self.width, "gate")(x)
            hidden = act(scale(gate, self.gate_scale))
            hidden = hidden * dense(self.width, "up")(x)
        else:
            hidden = act(dense(self.width, "up")(x))
        scaled = initializers.scaled(lecun, self.residual_scale)
        y = dense(x.shape[-1], "down", scaled)(hidden)
        return scale(y, self.output_scale)


def scale(x: jax.Array, factor: float) -> jax.Array:
    """factor * x, and x itself where the factor is 1."""
    return x if factor == 1 else x * factor
