"""Channel mixers: the second half of a block, token by token.

A channel mixer is a Flax module `y, state = mlp(x, state, segment_ids)`, with
`mlp.init_state(batch)`; most have no state, and that is None.  As with the
mixers of tokens, options stand beside the module, and a model's config has one
field of options for each: the name of the field is its name in `config.mlps`.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import activations
from seqjax.layers import fields
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import swiglu
from seqjax.layers import token_shift


@dataclasses.dataclass(unsafe_hash=True)
class ChannelOptions:
    """Options of a channel mixer in a model's config; the base of them.

    Attributes:
      width: hidden width; None is the model's `mlp_width`.
    """

    width: int | None = None

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path, such as "moe."."""
        del host
        fields.check(self, path)

    def build(self, host: mixer.Host, width: int, **module: Any) -> nn.Module:
        """The layer; `width` is the hidden one where the options name none."""
        raise NotImplementedError(f"{type(self).__name__} has no build")

    def idle(self, host: mixer.Host, width: int) -> int:
        """Numbers of its kernels that a token does not meet."""
        del host, width
        return 0


class SwiGLUChannels(swiglu.SwiGLU):
    """SwiGLU called as every channel mixer."""

    @nn.nowrap
    def init_state(self, batch: int) -> None:
        """None: it looks at one token."""
        del batch

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: None = None,
        segment_ids: Any = None,
        added: tuple[jax.Array, ...] | None = None,
    ) -> tuple[jax.Array, None]:
        """Maps x [B, T, D] to y [B, T, D]; there is no state."""
        del segment_ids
        return super().__call__(x, added), state


@dataclasses.dataclass(unsafe_hash=True)
class SwiGLUOptions(ChannelOptions):
    """SwiGLU and its relatives in a model's config.

    Attributes:
      activation: "silu" for SwiGLU.
      gated: whether there is a gate.
      use_bias: whether the projections have biases.
      gate_scale: factor on the gate before its activation.
      output_scale: factor on the output.
    """

    activation: activations.Activation = "silu"
    gated: bool = True
    use_bias: bool = False
    gate_scale: float = 1.0
    output_scale: float = 1.0

    def build(
        self, host: mixer.Host, width: int, **module: Any
    ) -> SwiGLUChannels:
        """The layer."""
        return SwiGLUChannels(
            self.width or width,
            host.dtype,
            host.residual_scale,
            self.activation,
            self.gated,
            self.use_bias,
            self.gate_scale,
            self.output_scale,
            **module,
        )


class RWKVChannels(nn.Module):
    """RWKV's channel mixing: a squared ReLU over a token and the one before.

        y = W_v relu(W_k x_k)^2,  gated: times sigmoid(W_r x_r)

    with x_i = x + mu_i (shift(x) - x).  RWKV-4, 5 and 6 gate, RWKV-7 does not;
    RWKV-4 stores 1 - mu (`stores_own`).  State D numbers a row.

    Attributes:
      features: D, of the input.
      width: hidden width.
      gated: whether there is a gate.
      stores_own: whether the parameter is the share of the token itself.
      dtype: of the computation; parameters are float32.
      residual_scale: factor on the initial output projection.
      axis_name: mesh axis that shards T.
    """

    features: int
    width: int
    gated: bool = True
    stores_own: bool = False
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0
    axis_name: str | None = None

    @nn.nowrap
    def init_state(self, batch: int) -> jax.Array:
        """The token before the first: zeros [B, 1, D]."""
        return token_shift.empty(batch, self.features, self.dtype)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes channels.

        Args:
          x: [B, T, D].
          state: what an earlier call returned [B, 1, D], or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the last real token's x.
        """
        before, shift = token_shift.shift(x, state, segment_ids, self.axis_name)
        x = x.astype(self.dtype)
        before = before.astype(self.dtype)

        def mixed(name: str) -> jax.Array:
            mu = self.param(
                f"mix_{name}",
                nn.initializers.constant(0.5),
                (self.features,),
                jnp.float32,
            )
            mu = norms.expand(mu, x).astype(x.dtype)
            if self.stores_own:
                return before + (x - before) * mu
            return x + (before - x) * mu

        def dense(features: int, name: str, init=None) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init or nn.initializers.lecun_normal(),
                name=name,
            )

        key = dense(self.width, "key")(mixed("key"))
        scaled = initializers.scaled(
            nn.initializers.lecun_normal(), self.residual_scale
        )
        y = dense(x.shape[-1], "value", scaled)(jnp.square(nn.relu(key)))
        if self.gated:
            gate = dense(x.shape[-1], "receptance")(mixed("receptance"))
            y = nn.sigmoid(gate) * y
        return y, shift


@dataclasses.dataclass(unsafe_hash=True)
class RWKVChannelsOptions(ChannelOptions):
    """RWKV's channel mixing in a model's config.

    Attributes:
      gated: whether there is a gate, as in all versions before 7.
      stores_own: whether the parameters are the shares of the token itself, as
        in RWKV-4.
    """

    gated: bool = True
    stores_own: bool = False

    def build(self, host: mixer.Host, width: int, **module: Any) -> nn.Module:
        """The layer."""
        return RWKVChannels(
            host.width,
            self.width or width,
            self.gated,
            self.stores_own,
            host.dtype,
            host.residual_scale,
            host.axis_name,
            **module,
        )
