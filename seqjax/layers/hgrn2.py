"""HGRN2: gated linear recurrence with state expansion.

    f_t = l + (1 - l) sigmoid(W_f x),   k_t = 1 - f_t,   q_t = silu(W_q x)
    S_t = diag(f_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   y = W_o rms(o)

Qin et al., arXiv 2404.07904.  The lower bound l grows from 0 in the first layer
with depth (`gates.lower_bounds`), so that upper layers remember longer; keys
are what the forget gate leaves, so there is no input gate.  The norm runs over
all heads together.  State H*K*V numbers a row, cost O(K*V) per token and head;
additive, so recall is bounded by how little keys overlap.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import gates
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class HGRN2State(NamedTuple):
    """memory [B, H, K, V], float32."""

    memory: jax.Array


class HGRN2(mixer.Mixer):
    """HGRN2 layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head: what the paper expands the state by.
      value_dim: V, of a head.
    """

    heads: int
    key_dim: int
    value_dim: int

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> HGRN2State:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        shape = (batch, self.heads, self.key_dim, self.value_dim)
        return HGRN2State(jnp.zeros(shape, norms.wide(self.dtype)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: HGRN2State | None = None,
        segment_ids: jax.Array | None = None,
        lower_bound: jax.Array | None = None,
    ) -> tuple[jax.Array, HGRN2State]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          lower_bound: float [H * K] in [0, 1), this layer's row of
            `gates.lower_bounds`; None for 0.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """

        def project(name: str, features: int, dtype: jnp.dtype) -> jax.Array:
            return projections.to_heads(x, self.heads, features, dtype, name)

        q = nn.silu(project("query", self.key_dim, self.dtype))
        f = project("forget", self.key_dim, norms.wide(self.dtype))
        v = project("value", self.value_dim, self.dtype)
        if lower_bound is not None:
            lower_bound = lower_bound.reshape(1, 1, self.heads, self.key_dim)
        log_decay, k = gates.lower_bounded_decay(f, lower_bound)
        o, memory = ops.gated_linear_attention(
            q,
            k.astype(self.dtype),
            v,
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(self, o, x, gated=False, full_width=True)
        return y, HGRN2State(memory)


@dataclasses.dataclass(unsafe_hash=True)
class HGRN2Options(mixer.ExpandedOptions):
    """HGRN2 in a model's config; the paper has head_dim 128.

    Attributes:
      use_lower_bound: whether the forget gate has a learned lower bound.
    """

    shards_time: ClassVar[bool] = True

    use_lower_bound: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """A row of the learned lower bounds."""
        return ("lower_bound",) if self.use_lower_bound else ()

    def lower_bound(self, host: mixer.Host) -> int | None:
        """H * K channels."""
        heads, key_dim, _ = self.expanded_sizes(host)
        return heads * key_dim if self.use_lower_bound else None

    def build(self, host: mixer.Host, **module: Any) -> HGRN2:
        """The layer."""
        return HGRN2(*self.expanded_sizes(host), **self.common(host), **module)
