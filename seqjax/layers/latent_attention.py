"""Latent attention (MLA): keys and values of all heads from one small vector.

    c_t = rms(W_c x_t),  r_t = rope(W_r x_t)
    q = W_q x = [q', q''],  k = [W_k c, r],  v = W_v c
    o_t = sum_s softmax_s((q'_t . k'_s + rope(q''_t) . r_s) / sqrt(K)) v_s
    y = W_o (o * sigmoid(W_g x))

DeepSeek-V2, arXiv 2405.04434; Kimi Linear (2510.26692) has no rotation.  The
state holds c and r, no keys and values: R + Kr numbers a token for what all
heads read and R for what they take, whatever the number of heads.  With a state
W_k is applied to the queries and W_v to what was read, which is the same
function: q' . W_k c = (W_k^T q') . c.  Cost O(T H (K + V)) a token without a
state, O(T H (2 R + Kr)) with one.
"""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import rotary

OutputGate = Literal["none", "headwise"]
OUTPUT_GATES = get_args(OutputGate)


class LatentAttention(mixer.Mixer):
    """Causal latent attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: of a head's keys, the part from the latent vector.
      shared_dim: Kr, of the part that all heads share.
      value_dim: V, of a head.
      rank: R, of the latent vector.
      rotary_base: of the angles that the shared part turns by; None for none.
      output_gate: "none" or "headwise".

    The state has the dtype of the computation.
    """

    heads: int
    key_dim: int
    shared_dim: int
    value_dim: int
    rank: int
    rotary_base: float | None = 10000.0
    output_gate: str = "none"

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> ops.AttentionState:
        """An empty cache for `capacity` tokens."""
        return ops.attention_cache(
            batch,
            capacity,
            1,
            self.rank + self.shared_dim,
            self.rank,
            dtype=self.dtype,
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
          y [B, T, D] in `dtype`, and the state with these tokens added, None
          with axis_name.

        Raises:
          ValueError: an unknown output_gate, or positions missing or useless.
        """
        width = self.key_dim + self.shared_dim
        q = projections.to_heads(x, self.heads, width, self.dtype, "query")
        compressed = projections.to_heads(
            x, 1, self.rank + self.shared_dim, self.dtype, "compress"
        )
        latent = norms.RMSNorm(self.eps, name="latent_norm")(
            compressed[..., : self.rank]
        )
        q, shared = self._turn(
            q, compressed[..., self.rank :], segment_ids, positions, state
        )
        expand = _Expand(
            self.rank, self.heads, self.key_dim + self.value_dim, name="expand"
        )()
        to_keys, to_values = jnp.split(
            expand.astype(self.dtype), [self.key_dim], axis=-1
        )
        own, turned = jnp.split(q, [self.key_dim], axis=-1)
        options: dict[str, Any] = {
            "scale": width**-0.5,
            "segment_ids": segment_ids,
        }
        after = None
        if self.axis_name is None:
            own_latent = jnp.einsum("bthk,rhk->bthr", own, to_keys)
            o, after = ops.softmax_attention(
                jnp.concatenate([own_latent, turned], axis=-1),
                jnp.concatenate([latent, shared], axis=-1),
                latent,
                initial_state=state,
                **options,
            )
            o = jnp.einsum("bthr,rhv->bthv", o, to_values)
        if state is None:
            # Fewer numbers a head; of the call above the state alone is used.
            keys, values = (
                jnp.einsum("btur,rhk->bthk", latent, kernel)
                for kernel in (to_keys, to_values)
            )
            shape = (*shared.shape[:2], self.heads, self.shared_dim)
            o, _ = ops.softmax_attention(
                q,
                jnp.concatenate([keys, jnp.broadcast_to(shared, shape)], -1),
                values,
                axis_name=self.axis_name,
                exchange=self.exchange,
                **options,
            )
        y = projections.from_heads(
            self._gate(o, x), x.shape[-1], self.dtype, self.residual_scale
        )
        return y, after

    def _turn(self, q, shared, segment_ids, positions, state):
        """Rotates what all heads share, and the queries' part that meets it."""
        if self.rotary_base is None:
            if positions is not None:
                raise ValueError(
                    "positions must be None where rotary_base is None: "
                    "nothing would use them"
                )
            return q, shared
        positions = rotary.positions_or_default(
            positions,
            segment_ids,
            q.shape[:2],
            continued=state is not None or self.axis_name is not None,
        )
        own, turned = jnp.split(q, [self.key_dim], axis=-1)
        turned = rotary.rotate(turned, positions, self.rotary_base)
        return (
            jnp.concatenate([own, turned], axis=-1),
            rotary.rotate(shared, positions, self.rotary_base),
        )

    def _gate(self, o: jax.Array, x: jax.Array) -> jax.Array:
        if self.output_gate not in OUTPUT_GATES:
            raise ValueError(
                f"output_gate must be one of {OUTPUT_GATES}, got "
                f"{self.output_gate!r}"
            )
        if self.output_gate == "none":
            return o
        gate = projections.to_heads(x, self.heads, 1, self.dtype, "gate")
        return o * nn.sigmoid(gate)


class _Expand(nn.Module):
    """The kernel [R, H, K + V] that makes keys and values."""

    rank: int
    heads: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel, float32."""
        shape = self.rank, self.heads, self.width
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        return self.param("kernel", init, shape, jnp.float32)


@dataclasses.dataclass(unsafe_hash=True)
class LatentAttentionOptions(mixer.HeadOptions):
    """Latent attention in a model's config.

    Attributes:
      rank: of the latent vector; None for 4 * head_dim.
      shared_dim: width of the keys' shared part; None for head_dim / 2.
      value_dim: of a head; None for head_dim, which is that of the other part
        of the keys.
      rotary_base: of the angles that the shared part turns by; None for none.
      output_gate: sigmoid gate on what is read.
    """

    shards_time: ClassVar[bool] = True

    rank: int | None = None
    shared_dim: int | None = None
    value_dim: int | None = None
    rotary_base: float | None = 10000.0
    output_gate: OutputGate = "none"

    @property
    def needs(self) -> tuple[str, ...]:
        """Positions, where they are used."""
        return () if self.rotary_base is None else ("positions",)

    def latent_sizes(self, host: mixer.Host) -> dict[str, int]:
        """The sizes of the layer."""
        heads, head_dim = self.sizes(host)
        return {
            "heads": heads,
            "key_dim": head_dim,
            "shared_dim": self.shared_dim or head_dim // 2,
            "value_dim": self.value_dim or head_dim,
            "rank": self.rank or 4 * head_dim,
        }

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        shared = self.latent_sizes(host)["shared_dim"]
        if shared < 1 or self.rotary_base is not None and shared % 2:
            raise ValueError(
                f"{path}shared_dim must be an even number of at least 2, got "
                f"{shared}; by default it is half the width of a head"
            )

    def build(self, host: mixer.Host, **module: Any) -> LatentAttention:
        """The layer."""
        return LatentAttention(
            **self.latent_sizes(host),
            rotary_base=self.rotary_base,
            output_gate=self.output_gate,
            **self.common(host) | {"exchange": host.attention_exchange},
            **module,
        )

    def bounded(self, state: Any) -> Any:
        """The state, which is to hold all tokens."""
        return state

    def flops(self, host: mixer.Host, length: int) -> float:
        """q . k and p . v with the mean number of tokens a query sees."""
        sizes = self.latent_sizes(host)
        numbers = sizes["key_dim"] + sizes["shared_dim"] + sizes["value_dim"]
        return 2.0 * sizes["heads"] * numbers * (length + 1) / 2
