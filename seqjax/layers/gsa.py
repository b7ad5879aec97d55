"""Gated slot attention: a fixed number of slots that forget and are rewritten.

    K_t = K_{t-1} diag(f_t) + k_t (1 - f_t)^T,  a_t = softmax(K_t^T q_t)
    V_t = diag(f_t) V_{t-1} + (1 - f_t) v_t^T,  o_t = V_t^T a_t
    log f = log sigmoid(W_f x) / 8,             y = W_o rms(silu(o))

Zhang et al., arXiv 2409.07146.  q, k and v pass silu; the softmax over the M
slots sharpens what is read, so keys may be as wide as values.  The norm runs
over the whole width, after silu.  State H*M*(K + V) numbers a row, cost
O(M*(K + V)) per token and head; slots are written whether or not they are
wanted.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import convolved
from seqjax.layers import gates
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class GSALayerState(NamedTuple):
    """conv [B, W-1, H*(2*K+V)] or None, and memory, a `seqjax.ops.GSAState`."""

    conv: jax.Array | None
    memory: ops.GSAState


class GSA(mixer.Mixer):
    """Gated slot attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      slots: M, of a head.
      gate_normalizer: divides the log gate.
      conv_width: tokens a short convolution of q, k, v sees; None for none.
      scale: factor of q.
    """

    heads: int
    key_dim: int
    value_dim: int
    slots: int = 64
    gate_normalizer: float = 8.0
    conv_width: int | None = None
    scale: float = 1.0

    @nn.nowrap
    def _widths(self) -> tuple[int, int, int]:
        keys = self.heads * self.key_dim
        return keys, keys, self.heads * self.value_dim

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> GSALayerState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        keys = (batch, self.heads, self.key_dim, self.slots)
        values = (batch, self.heads, self.slots, self.value_dim)
        return GSALayerState(
            convolved.empty(batch, self._widths(), self.conv_width, self.dtype),
            ops.GSAState(jnp.zeros(keys, wide), jnp.zeros(values, wide)),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: GSALayerState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, GSALayerState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        parts, conv = convolved.project(
            x,
            self._widths(),
            self.conv_width,
            None if state is None else state.conv,
            segment_ids,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        if self.conv_width is not None:
            # The feature map is one more silu.
            parts = [nn.silu(part) for part in parts]
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        wide = norms.wide(self.dtype)
        gate = projections.to_heads(x, self.heads, self.slots, wide, "decay")
        log_decay = gates.sigmoid_decay(gate, self.gate_normalizer)
        o, memory = ops.gated_slot_attention(
            q,
            k,
            v,
            -jnp.expm1(log_decay),
            log_decay,
            scale=self.scale,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(
            self, nn.silu(o), x, gated=False, full_width=True
        )
        return y, GSALayerState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class GSAOptions(mixer.ExpandedOptions):
    """Gated slot attention in a model's config.

    Attributes:
      slots: M, of a head.
      gate_normalizer: divides the log gate.
      conv_width: tokens a short convolution of q, k, v sees; None for none.
      scale: factor of q.
    """

    shards_time: ClassVar[bool] = True

    slots: int = 64
    gate_normalizer: float = 8.0
    conv_width: int | None = None
    scale: float = 1.0

    def build(self, host: mixer.Host, **module: Any) -> GSA:
        """The layer."""
        return GSA(
            *self.expanded_sizes(host),
            self.slots,
            self.gate_normalizer,
            self.conv_width,
            self.scale,
            **self.common(host),
            **module,
        )
