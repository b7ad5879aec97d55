"""Gated linear attention with a decay for every key channel (GLA).

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K)
    g = log sigmoid(W_2 W_1 x + b) / 16,        y = W_o (rms(o) * silu(W_r x))

Yang et al., arXiv 2312.06635.  Keys are half as wide as values, there is no
convolution unless asked for, and the output is normalised per head, then
gated.  State H*K*V numbers a row, cost O(K*V) per token and head; what was
written is never corrected, so recall is bounded by how little keys overlap.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import convolved
from seqjax.layers import gates
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class GLAState(NamedTuple):
    """conv [B, W-1, H*(2*K+V)] or None, and memory [B, H, K, V]."""

    conv: jax.Array | None
    memory: jax.Array


class GLA(mixer.Mixer):
    """Gated linear attention layer with a channel gate.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      gate_rank: inner width of the map that makes the gate.
      gate_normalizer: divides the log gate: 16 keeps about sixteen times as
        many tokens in memory at the start of training.
      conv_width: tokens a short convolution of q, k, v sees; None for no
        convolution, and then q, k, v have no activation either.
      output_gate: whether the output is gated.
    """

    heads: int
    key_dim: int
    value_dim: int
    gate_rank: int = 16
    gate_normalizer: float = 16.0
    conv_width: int | None = None
    output_gate: bool = True

    @nn.nowrap
    def _widths(self) -> tuple[int, int, int]:
        keys = self.heads * self.key_dim
        return keys, keys, self.heads * self.value_dim

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> GLAState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        memory = (batch, self.heads, self.key_dim, self.value_dim)
        return GLAState(
            convolved.empty(batch, self._widths(), self.conv_width, self.dtype),
            jnp.zeros(memory, norms.wide(self.dtype)),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: GLAState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, GLAState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        xavier = initializers.xavier(2**-2.5)
        parts, conv = convolved.project(
            x,
            self._widths(),
            self.conv_width,
            None if state is None else state.conv,
            segment_ids,
            dtype=self.dtype,
            axis_name=self.axis_name,
            activate=self.conv_width is not None,
            kernel_init=xavier,
        )
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)
        gate = convolved.low_rank(
            x,
            self.gate_rank,
            self.heads * self.key_dim,
            "decay",
            use_bias=True,
            dtype=self.dtype,
            kernel_init=xavier,
            gate=True,
        )
        o, memory = ops.gated_linear_attention(
            q,
            k,
            v,
            gates.sigmoid_decay(gate.reshape(k.shape), self.gate_normalizer),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(
            self, o, x, gated=self.output_gate, kernel_init=xavier
        )
        return y, GLAState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class GLAOptions(mixer.ExpandedOptions):
    """Gated linear attention in a model's config.

    Attributes:
      key_expand: key width of a head over `head_dim`.
      gate_rank: inner width of the map that makes the gate.
      gate_normalizer: divides the log gate.
      conv_width: of a short convolution; None for none, as published.
      output_gate: whether the output is gated.
    """

    shards_time: ClassVar[bool] = True

    key_expand: float = 0.5
    gate_rank: int = 16
    gate_normalizer: float = 16.0
    conv_width: int | None = None
    output_gate: bool = True

    def build(self, host: mixer.Host, **module: Any) -> GLA:
        """The layer."""
        return GLA(
            *self.expanded_sizes(host),
            self.gate_rank,
            self.gate_normalizer,
            self.conv_width,
            self.output_gate,
            **self.common(host),
            **module,
        )
