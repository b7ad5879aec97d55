"""Short causal convolution in front of a mixer."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import norms


class ShortConvolution(nn.Module):
    """Depthwise causal convolution and silu, inside each document.

    Attributes:
      width: W, tokens it sees, the current one included.
      use_bias: whether a bias is added (Mamba-2) or not (GLA).
      axis_name: mesh axis that shards T, inside `jax.shard_map`.
      activation: "silu", or None (Griffin).
    """

    width: int = 4
    use_bias: bool = False
    axis_name: str | None = None
    activation: str | None = "silu"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Convolves x [B, T, D]; the state [B, W-1, D] is the last inputs."""
        wide = norms.wide(x.dtype)
        init = initializers.fan_in_uniform(self.width)
        shape = (self.width, x.shape[-1])
        weight = self.param("weight", init, shape, jnp.float32).astype(wide)
        bias = None
        if self.use_bias:
            bias = self.param("bias", init, shape[1:], jnp.float32)
            bias = bias.astype(wide)
        return ops.short_convolution(
            x,
            weight,
            bias=bias,
            activation=self.activation,
            initial_state=state,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
        )
