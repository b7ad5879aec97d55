"""LightNet: every key channel is a softmax over the tokens so far.

    o_t = S_t^T silu(W_q x_t) / sqrt(K),   S_t = sum_s exp(k_s - z_t) v_s^T
    z_t = log sum_{s <= t} exp(k_s),       y = W_o (rms(o) * silu(W_2 W_1 x))

Qin et al., arXiv 2405.21022.  The decay z_{t-1} - z_t is made by the keys
alone: a key larger than all before clears its channel, and otherwise memory is
an average over all of the past.  The norm runs over all heads together.  State
H*K*(V + 1) numbers a row, cost O(K*V) per token and head.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import convolved
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class LightNetLayerState(NamedTuple):
    """memory: `seqjax.ops.LightNetState`."""

    memory: ops.LightNetState


class LightNet(mixer.Mixer):
    """LightNet layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      gate_rank: inner width of the map that makes the output gate.
    """

    heads: int
    key_dim: int
    value_dim: int
    gate_rank: int = 128

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> LightNetLayerState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        keys = (batch, self.heads, self.key_dim)
        return LightNetLayerState(
            ops.LightNetState(
                jnp.zeros((*keys, self.value_dim), wide),
                jnp.full(keys, -jnp.inf, wide),
            )
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: LightNetLayerState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, LightNetLayerState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """

        def project(name: str, features: int) -> jax.Array:
            return projections.to_heads(
                x, self.heads, features, self.dtype, name
            )

        o, memory = ops.lightnet_attention(
            nn.silu(project("query", self.key_dim)),
            project("key", self.key_dim),
            project("value", self.value_dim),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        gate = convolved.low_rank(
            x,
            self.gate_rank,
            self.heads * self.value_dim,
            "gate",
            use_bias=False,
            dtype=self.dtype,
        )
        y = projections.read_out(self, o, x, gate=gate, full_width=True)
        return y, LightNetLayerState(memory)


@dataclasses.dataclass(unsafe_hash=True)
class LightNetOptions(mixer.ExpandedOptions):
    """LightNet in a model's config; the paper has head_dim 128.

    Attributes:
      gate_rank: inner width of the map that makes the output gate.
    """

    shards_time: ClassVar[bool] = True

    gate_rank: int = 128

    def build(self, host: mixer.Host, **module: Any) -> LightNet:
        """The layer."""
        return LightNet(
            *self.expanded_sizes(host),
            self.gate_rank,
            **self.common(host),
            **module,
        )
