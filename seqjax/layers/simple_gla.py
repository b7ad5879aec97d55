"""Gated linear attention with one decay a head (simple GLA).

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K)
    g = log sigmoid(W_g x + b) / 16,      y = W_o (rms(o) * silu(W_r x))

GLA is arXiv 2312.06635; with a scalar gate the chunked form is one dense
matmul.  q, k and v pass a short convolution and silu.  State
H*K*V + (W-1)*3*H*K numbers a row, cost O(K*V) per token and head; recall is
bounded by the state.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import short_convolution


class SimpleGLAState(NamedTuple):
    """conv [B, W-1, 3*H*K] and memory [B, H, K, K]."""

    conv: jax.Array
    memory: jax.Array


class SimpleGLA(mixer.Mixer):
    """Gated linear attention layer with a scalar gate.

    Attributes, beside those of every `Mixer`:
      heads: H.
      head_dim: K; values are as wide.
      conv_width: W, tokens the convolution sees, the current one included.
      gate_normalizer: divides the log gate: 16 keeps about sixteen times as
        many tokens in memory at the start of training.
    """

    heads: int
    head_dim: int
    conv_width: int = 4
    gate_normalizer: float = 16.0

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> SimpleGLAState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        channels = 3 * self.heads * self.head_dim
        memory = (batch, self.heads, self.head_dim, self.head_dim)
        return SimpleGLAState(
            jnp.zeros((batch, self.conv_width - 1, channels), wide),
            jnp.zeros(memory, wide),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: SimpleGLAState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, SimpleGLAState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        heads, dim = self.heads, self.head_dim
        qkv = nn.Dense(
            3 * heads * dim, use_bias=False, dtype=self.dtype, name="qkv"
        )(x)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, axis_name=self.axis_name, name="conv"
        )
        qkv, conv = convolve(
            qkv, None if state is None else state.conv, segment_ids
        )
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, dim), 2, 0)
        gate = nn.Dense(heads, dtype=norms.wide(self.dtype), name="decay")(x)
        log_decay = jax.nn.log_sigmoid(gate) / self.gate_normalizer
        o, memory = ops.gated_linear_attention(
            q,
            k,
            v,
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        gate = projections.to_heads(x, heads, dim, self.dtype, "gate")
        o = norms.GatedRMSNorm(eps=self.eps, name="norm")(o, gate)
        y = projections.from_heads(
            o, x.shape[-1], self.dtype, self.residual_scale
        )
        return y, SimpleGLAState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class SimpleGLAOptions(mixer.HeadOptions):
    """Scalar-gated linear attention in a model's config.

    Attributes:
      conv_width: tokens the short convolution sees.
      gate_normalizer: divides the log gate.
    """

    shards_time: ClassVar[bool] = True

    conv_width: int = 4
    gate_normalizer: float = 16.0

    def build(self, host: mixer.Host, **module: Any) -> SimpleGLA:
        """The layer."""
        return SimpleGLA(
            *self.sizes(host),
            self.conv_width,
            self.gate_normalizer,
            **self.common(host),
            **module,
        )
