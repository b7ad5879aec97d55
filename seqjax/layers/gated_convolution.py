"""Gated short convolution, the mixer of LFM2 (arXiv 2511.23404).

    b, c, u = W_in x,   y = W_out (c * conv(b * u))

The convolution is causal and depthwise, without a nonlinearity.  State
(W-1)*D numbers a row, cost 8*D^2 FLOPs a token, nearly all projections; what
lies W or more tokens back it cannot see.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import short_convolution


class GatedConvolutionState(NamedTuple):
    """conv [B, W-1, D]."""

    conv: jax.Array


class GatedConvolution(mixer.Mixer):
    """Gated short convolution layer.

    Attributes, beside those of every `Mixer`:
      channels: D, of the stream.
      conv_width: W, tokens the convolution sees, the current one included.
      use_bias: whether projections and convolution have biases.
    """

    channels: int
    conv_width: int = 3
    use_bias: bool = False

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> GatedConvolutionState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        shape = batch, self.conv_width - 1, self.channels
        return GatedConvolutionState(jnp.zeros(shape, norms.wide(self.dtype)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: GatedConvolutionState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, GatedConvolutionState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
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

        b, c, u = jnp.split(dense(3 * self.channels, "in")(x), 3, axis=-1)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, self.use_bias, self.axis_name, None, name="conv"
        )
        u, conv = convolve(
            b * u, None if state is None else state.conv, segment_ids
        )
        scaled = initializers.scaled(lecun, self.residual_scale)
        y = dense(x.shape[-1], "out", scaled)(c * u)
        return y, GatedConvolutionState(conv)


@dataclasses.dataclass(unsafe_hash=True)
class GatedConvolutionOptions(mixer.Options):
    """Gated short convolution in a model's config.

    Attributes:
      conv_width: tokens the convolution sees.
      use_bias: whether projections and convolution have biases.
    """

    shards_time: ClassVar[bool] = True

    conv_width: int = 3
    use_bias: bool = False

    def build(self, host: mixer.Host, **module: Any) -> GatedConvolution:
        """The layer."""
        return GatedConvolution(
            host.width,
            self.conv_width,
            self.use_bias,
            **self.common(host),
            **module,
        )

    def flops(self, host: mixer.Host, length: int) -> float:
        """Forward FLOPs a token of the convolution."""
        del length
        return 2.0 * self.conv_width * host.width
