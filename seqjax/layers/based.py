"""Based: linear attention whose kernel is exp to second order.

    phi(q) . phi(k) = 1 + s + s^2 / 2,   s = q . k / sqrt(K)
    S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)
    o_t = S_t^T phi(q_t) / (z_t . phi(q_t)),   y = W_o o

Arora et al., arXiv 2402.18668.  Queries and keys have few channels (16), since
phi has K (K + 1) / 2 + K + 1; the paper puts such layers between short
convolutions and windows of softmax attention.  State H*F*(V + 1) numbers a row
with F the channels of phi, cost O(F*V) per token and head; nothing is ever
forgotten.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.ops import feature_maps


class BasedState(NamedTuple):
    """memory [B, H, F, V] and normalizer [B, H, F]."""

    memory: jax.Array
    normalizer: jax.Array


class Based(mixer.Mixer):
    """Based linear attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, channels of a head's queries and keys.
      value_dim: V, of a head.
    """

    heads: int
    key_dim: int
    value_dim: int

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> BasedState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        features = self.key_dim * (self.key_dim + 1) // 2 + self.key_dim + 1
        shape = (batch, self.heads, features, self.value_dim)
        return BasedState(jnp.zeros(shape, wide), jnp.zeros(shape[:3], wide))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: BasedState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, BasedState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        q, k, v = (
            projections.to_heads(x, self.heads, features, self.dtype, name)
            for name, features in (
                ("query", self.key_dim),
                ("key", self.key_dim),
                ("value", self.value_dim),
            )
        )
        o, memory = ops.linear_attention(
            q,
            k,
            v,
            normalize=True,
            feature_map=feature_maps.taylor,
            scale=1.0,
            initial_state=None if state is None else tuple(state),
            segment_ids=segment_ids,
            axis_name=self.axis_name,
        )
        y = projections.from_heads(
            o, x.shape[-1], self.dtype, self.residual_scale
        )
        return y, BasedState(*memory)


@dataclasses.dataclass(unsafe_hash=True)
class BasedOptions(mixer.HeadOptions):
    """Based in a model's config; values have the width of a head.

    Attributes:
      feature_dim: channels of a head's queries and keys.
    """

    feature_dim: int = 16

    def build(self, host: mixer.Host, **module: Any) -> Based:
        """The layer."""
        heads, head_dim = self.sizes(host)
        return Based(
            heads, self.feature_dim, head_dim, **self.common(host), **module
        )
