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
    def __call__(
        self, x: jax.Array, added: tuple[jax.Array, ...] | None = None
    ) -> jax.Array:
        """Maps x [..., D] to [..., D].

        Args:
          x: [..., D].
          added: terms of W_gate x, where there is a gate, and of W_up x, each
            [..., width]; None for none.
        """
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
        names = ("gate", "up") if self.gated else ("up",)
        maps = [dense(self.width, name)(x) for name in names]
        if added is not None:
            maps = [y + term for y, term in zip(maps, added, strict=True)]
        if self.gated:
            gate, up = maps
            hidden = act(scale(gate, self.gate_scale)) * up
        else:
            hidden = act(maps[0])
        scaled = initializers.scaled(lecun, self.residual_scale)
        y = dense(x.shape[-1], "down", scaled)(hidden)
        return scale(y, self.output_scale)


def scale(x: jax.Array, factor: float) -> jax.Array:
    """factor * x, and x itself where the factor is 1."""
    return x if factor == 1 else x * factor
