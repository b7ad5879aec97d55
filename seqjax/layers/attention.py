"""Softmax attention with rotary positions, grouped heads and an output gate.

    o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s
    y = W_o (o * sigmoid(W_g x))

Rotary positions: arXiv 2104.09864; grouped heads: 2305.13245; output gate:
2505.06708 (one number a head, "headwise", or a channel, "elementwise");
query-key norm: 2302.05442 in its RMS form.  The state holds every key and
value seen (2*Hk*K numbers a token), or the last window-1 of them; cost O(T*K)
per token and head.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import rotary

OUTPUT_GATES = ("none", "headwise", "elementwise")


class Attention(nn.Module):
    """Causal softmax attention layer.

    Attributes:
      heads: H, query heads.
      head_dim: K, of queries, keys and values.
      key_value_heads: divides heads; None means heads.
      window: tokens a query sees, itself included; None for all.
      rotary_base: of the rotary angles; None for no positions.
      output_gate: "none", "headwise" or "elementwise".
      qk_norm: RMS norm of queries and keys per head, before the rotation.
      eps: of that norm.
      dtype: of the computation and the state; parameters are float32.
      residual_scale: factor on the initial output projection.
      axis_name: mesh axis that shards T, inside `jax.shard_map`.
    """

    heads: int
    head_dim: int
    key_value_heads: int | None = None
    window: int | None = None
    rotary_base: float | None = 10000.0
    output_gate: str = "none"
    qk_norm: bool = False
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0
    axis_name: str | None = None

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> ops.AttentionState:
        """An empty cache for `capacity` tokens (window - 1 with a window)."""
        return ops.attention_cache(
            batch,
            capacity,
            self.key_value_heads or self.heads,
            self.head_dim,
            self.head_dim,
            dtype=self.dtype,
            window=self.window,
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: ops.AttentionState | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, ops.AttentionState | None]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call or `init_state` returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], index of each token in its document; needed
            along with a state or axis_name, refused without rotary_base.

        Returns:
          y [B, T, D] in `dtype`, and the state with these tokens added.

        Raises:
          ValueError: an unknown output_gate, or positions missing or useless.
        """
        q, k, v = self._query_key_value(x)
        if self.rotary_base is not None:
            positions = rotary.positions_or_default(
                positions,
                segment_ids,
                x.shape[:2],
                continued=state is not None or self.axis_name is not None,
            )
            q = rotary.rotate(q, positions, self.rotary_base)
            k = rotary.rotate(k, positions, self.rotary_base)
        elif positions is not None:
            raise ValueError(
                "positions must be None where rotary_base is None: nothing "
                "would use them"
            )
        o, state = ops.softmax_attention(
            q,
            k,
            v,
            window=self.window,
            initial_state=state,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
        )
        o = self._gate(o, x)
        y = projections.from_heads(
            o, x.shape[-1], self.dtype, self.residual_scale
        )
        return y, state

    def _query_key_value(self, x: jax.Array) -> tuple[jax.Array, ...]:
        shared = self.key_value_heads or self.heads
        q, k, v = (
            projections.to_heads(x, heads, self.head_dim, self.dtype, name)
            for name, heads in (
                ("query", self.heads),
                ("key", shared),
                ("value", shared),
            )
        )
        if self.qk_norm:
            q = norms.RMSNorm(self.eps, name="query_norm")(q)
            k = norms.RMSNorm(self.eps, name="key_norm")(k)
        return q, k, v

    def _gate(self, o: jax.Array, x: jax.Array) -> jax.Array:
        if self.output_gate not in OUTPUT_GATES:
            raise ValueError(
                f"output_gate must be one of {OUTPUT_GATES}, got "
                f"{self.output_gate!r}"
            )
        if self.output_gate == "none":
            return o
        features = 1 if self.output_gate == "headwise" else self.head_dim
        gate = projections.to_heads(x, self.heads, features, self.dtype, "gate")
        return o * nn.sigmoid(gate)
