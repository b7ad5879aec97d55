"""RWKV-4 time mixing: a decaying average in every channel.

    x_i = mu_i x + (1 - mu_i) shift(x),   r, k, v = W_i x_i
    o_t = (N_{t-1} + exp(u + k_t) v_t) / (Z_{t-1} + exp(u + k_t))
    N_t = exp(-exp(w)) N_{t-1} + exp(k_t) v_t, Z_t likewise with v = 1
    y = W_o (sigmoid(r) * o)

Peng et al., arXiv 2305.13048.  Decays w and bonuses u are parameters, one a
channel, and start from the author's curves over channels and depth.  State
3*E + D numbers a row, cost O(E) a token beside the projections; a number a
channel holds no associations, so recall is weak.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import rwkv_init
from seqjax.layers import token_shift


class RWKV4LayerState(NamedTuple):
    """shift [B, 1, D], and memory, a `seqjax.ops.RWKV4State`."""

    shift: jax.Array
    memory: ops.RWKV4State


class RWKV4(mixer.Mixer):
    """RWKV-4 time mixing layer.

    Attributes, beside those of every `Mixer`:
      width: D, of the input.
      inner: E, channels of the average.
      layer: index of this layer in its model, for the initial values.
      layers: number of layers of the model, for the initial values.
    """

    width: int
    inner: int
    layer: int = 0
    layers: int = 1

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> RWKV4LayerState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        zeros = jnp.zeros((batch, self.inner), wide)
        return RWKV4LayerState(
            token_shift.empty(batch, self.width, self.dtype),
            ops.RWKV4State(
                num=zeros, den=zeros, max=jnp.full_like(zeros, -jnp.inf)
            ),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: RWKV4LayerState | None = None,
        segment_ids: jax.Array | None = None,
        layer: jax.Array | None = None,
    ) -> tuple[jax.Array, RWKV4LayerState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          layer: int32 [], in the place of the attribute where layers are
            scanned; it matters for the initial values alone.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        depth = rwkv_init.Depth(
            self.layer if layer is None else layer, self.layers
        )
        x, wide = x.astype(self.dtype), norms.wide(self.dtype)
        before, shift = token_shift.shift(
            x,
            None if state is None else state.shift,
            segment_ids,
            self.axis_name,
        )
        curves = rwkv_init.rwkv4_mixtures(depth)

        def project(name: str, dtype: jnp.dtype) -> jax.Array:
            mu = self.param(
                f"mix_{name}", curves[name], (self.width,), jnp.float32
            )
            mixed = before + (x - before) * norms.expand(mu, x).astype(x.dtype)
            return nn.Dense(self.inner, use_bias=False, dtype=dtype, name=name)(
                mixed
            )

        def channel(name: str, init: nn.initializers.Initializer) -> jax.Array:
            value = self.param(name, init, (self.inner,), jnp.float32)
            return value.astype(wide)

        o, memory = ops.rwkv4(
            project("key", wide),
            project("value", wide),
            -jnp.exp(channel("decay", rwkv_init.rwkv4_decay(depth))),
            channel("bonus", rwkv_init.rwkv4_bonus()),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        gate = nn.sigmoid(project("receptance", self.dtype))
        y = nn.Dense(
            self.width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                nn.initializers.lecun_normal(), self.residual_scale
            ),
            name="out",
        )(gate * o.astype(self.dtype))
        return y, RWKV4LayerState(shift, memory)


@dataclasses.dataclass(unsafe_hash=True)
class RWKV4Options(mixer.Options):
    """RWKV-4 in a model's config.

    Attributes:
      expand: channels of the average over the model's width.
    """

    shards_time: ClassVar[bool] = True

    expand: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Its place in the depth."""
        return ("layer",)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        mixer.expanded(f"{path}expand", self.expand, host.width)

    def build(self, host: mixer.Host, **module: Any) -> RWKV4:
        """The layer."""
        return RWKV4(
            host.width,
            round(self.expand * host.width),
            layers=host.depth,
            **self.common(host),
            **module,
        )
