"""mLSTM: the matrix memory of xLSTM, with an exponential input gate.

    C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t
    h_t = C_t^T q_t / max(|n_t . q_t|, 1),   y = W_o (norm(h) * sigmoid(W x))
    f = sigmoid(cap(W_f x + b_f)),   i = exp(cap(W_i x + b_i))

xLSTM: arXiv 2405.04517; the block is that of xLSTM 7B, arXiv 2503.13427:
cap(x) = 15 tanh(x / 15), queries and keys half as wide as values, a layer norm
of each head, no convolution.  b_f rises from 3 to 6 over the heads and b_i is
-10, so that memory starts long and hardly written.  State H*(K*V + K + 1)
numbers a row, cost O(K*V) per token and head; additive, so recall is bounded by
how little keys overlap.
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


class MLSTMLayerState(NamedTuple):
    """memory: `seqjax.ops.MLSTMState`."""

    memory: ops.MLSTMState


class MLSTM(mixer.Mixer):
    """mLSTM layer of xLSTM.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      gate_cap: bound of the gates before their activation; None for none.
    """

    heads: int
    key_dim: int
    value_dim: int
    gate_cap: float | None = 15.0

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> MLSTMLayerState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        C = (batch, self.heads, self.key_dim, self.value_dim)
        return MLSTMLayerState(
            ops.MLSTMState(
                jnp.zeros(C, wide),
                jnp.zeros(C[:3], wide),
                jnp.full(C[:2], -jnp.inf, wide),
            )
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: MLSTMLayerState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, MLSTMLayerState]:
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

        def gate(name: str, bias: nn.initializers.Initializer) -> jax.Array:
            raw = nn.Dense(
                self.heads,
                dtype=norms.wide(self.dtype),
                bias_init=bias,
                name=name,
            )(x)
            if self.gate_cap is None:
                return raw
            return self.gate_cap * jnp.tanh(raw / self.gate_cap)

        h, memory = ops.mlstm(
            project("query", self.key_dim),
            project("key", self.key_dim),
            project("value", self.value_dim),
            gate("input_gate", nn.initializers.constant(-10.0)),
            gate("forget_gate", _rising),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        h = norms.HeadLayerNorm(self.eps, use_bias=False, name="norm")(h)
        h = h * nn.sigmoid(project("gate", self.value_dim))
        y = projections.from_heads(
            h, x.shape[-1], self.dtype, self.residual_scale
        )
        return y, MLSTMLayerState(memory)


def _rising(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
    """From 3 in the first head to 6 in the last."""
    del key
    return jnp.linspace(3, 6, shape[0], dtype=dtype)


@dataclasses.dataclass(unsafe_hash=True)
class MLSTMOptions(mixer.ExpandedOptions):
    """mLSTM in a model's config; xLSTM 7B has 8 heads.

    Attributes:
      gate_cap: bound of the gates before their activation; None for none.
    """

    shards_time: ClassVar[bool] = True

    key_expand: float = 0.5
    gate_cap: float | None = 15.0

    def build(self, host: mixer.Host, **module: Any) -> MLSTM:
        """The layer."""
        return MLSTM(
            *self.expanded_sizes(host),
            self.gate_cap,
            **self.common(host),
            **module,
        )
