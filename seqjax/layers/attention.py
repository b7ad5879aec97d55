"""Softmax attention with rotary positions, grouped heads and an output gate.

    o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s
    y = W_o (o * sigmoid(W_g x))

Rotary positions: arXiv 2104.09864; grouped heads: 2305.13245; output gate:
2505.06708 (one number a head, "headwise", or a channel, "elementwise");
query-key norm: 2302.05442 in its RMS form.  The state holds every key and
value seen (2*Hk*K numbers a token), or the last window-1 of them; cost O(T*K)
per token and head.
"""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

from flax import linen as nn
import jax

from seqjax import ops
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import rotary

OutputGate = Literal["none", "headwise", "elementwise"]
OUTPUT_GATES = get_args(OutputGate)


class Attention(mixer.Mixer):
    """Causal softmax attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H, query heads.
      head_dim: K, of queries, keys and values.
      key_value_heads: divides heads; None means heads.
      window: tokens a query sees, itself included; None for all.
      rotary_base: of the rotary angles; None for no positions.
      output_gate: "none", "headwise" or "elementwise".
      qk_norm: RMS norm of queries and keys per head, before the rotation.
      rotary_dim: channels of a head that are rotated; None for all.
      full_width_norm: whether that norm runs over all heads together.
      zero_centred_norm: whether its parameter is the scale - 1.
      use_bias: of the projections to queries, keys and values.
      use_out_bias: of the output projection.
      scale: on q . k; None for 1/sqrt(K).
      features: width of y; None for D.

    The state has the dtype of the computation.
    """

    heads: int
    head_dim: int
    key_value_heads: int | None = None
    window: int | None = None
    rotary_base: float | None = 10000.0
    output_gate: str = "none"
    qk_norm: bool = False
    rotary_dim: int | None = None
    full_width_norm: bool = False
    zero_centred_norm: bool = False
    use_bias: bool = False
    use_out_bias: bool = False
    scale: float | None = None
    features: int | None = None

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> ops.AttentionState:
        """An empty cache for `capacity` tokens (window - 1 with a window)."""
        return ops.attention_cache(
            batch,
            capacity,
            self._shared_heads(),
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
        added: tuple[jax.Array, ...] | None = None,
    ) -> tuple[jax.Array, ops.AttentionState | None]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call or `init_state` returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], index of each token in its document; needed
            along with a state or axis_name, refused without rotary_base.
          added: terms of the queries [B, T, H, K], keys and values
            [B, T, Hk, K], as projected; None for none.

        Returns:
          y [B, T, D] in `dtype`, and the state with these tokens added.

        Raises:
          ValueError: an unknown output_gate, or positions missing or useless.
        """
        q, k, v = self._query_key_value(x, added)
        if self.rotary_base is not None:
            positions = rotary.positions_or_default(
                positions,
                segment_ids,
                x.shape[:2],
                continued=state is not None or self.axis_name is not None,
            )
            base, dim = self.rotary_base, self.rotary_dim
            q = rotary.rotate(q, positions, base, dim)
            k = rotary.rotate(k, positions, base, dim)
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
            scale=self.scale,
            initial_state=state,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            # A window moves its halo, whatever other layers exchange.
            exchange=None if self.window is not None else self.exchange,
        )
        o = self._gate(o, x)
        y = projections.from_heads(
            o,
            self.features or x.shape[-1],
            self.dtype,
            self.residual_scale,
            use_bias=self.use_out_bias,
        )
        return y, state

    @nn.nowrap
    def _shared_heads(self) -> int:
        """Heads of keys and values."""
        shared = self.heads
        if self.key_value_heads is not None:
            shared = self.key_value_heads
        if type(shared) is not int or shared < 1 or self.heads % shared:
            raise ValueError(
                f"key_value_heads must be an int of at least 1 that divides "
                f"heads={self.heads}, or None, got {shared!r}"
            )
        return shared

    def _query_key_value(
        self, x: jax.Array, added: tuple[jax.Array, ...] | None
    ) -> tuple[jax.Array, ...]:
        shared = self._shared_heads()
        q, k, v = (
            projections.to_heads(
                x,
                heads,
                self.head_dim,
                self.dtype,
                name,
                use_bias=self.use_bias,
            )
            for name, heads in (
                ("query", self.heads),
                ("key", shared),
                ("value", shared),
            )
        )
        if added is not None:
            parts = zip((q, k, v), added, strict=True)
            q, k, v = (part + term for part, term in parts)
        if self.qk_norm:
            q, k = self._norm(q, "query_norm"), self._norm(k, "key_norm")
        return q, k, v

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        norm = norms.RMSNorm(self.eps, self.zero_centred_norm, name=name)
        if self.full_width_norm:
            return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        return norm(x)

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


@dataclasses.dataclass(unsafe_hash=True)
class AttentionOptions(mixer.HeadOptions):
    """Softmax attention in a model's config.

    Attributes:
      key_value_heads: divides heads; None for as many.
      window: tokens a query sees, itself included; None for all.
      rotary_base: of the rotary angles; None for no positions.
      output_gate: sigmoid gate on what is read.
      qk_norm: whether queries and keys are normalised per head.
      rotary_dim: channels of a head that are rotated; None for all.
      full_width_norm: whether they are normalised over all heads together.
      zero_centred_norm: whether the parameters of that norm are its scales - 1.
      use_bias: of the projections to queries, keys and values.
      use_out_bias: of the output projection.
      scale: on q . k; None for 1/sqrt(K).
    """

    shards_time: ClassVar[bool] = True

    key_value_heads: int | None = None
    window: int | None = None
    rotary_base: float | None = 10000.0
    output_gate: OutputGate = "none"
    qk_norm: bool = False
    rotary_dim: int | None = None
    full_width_norm: bool = False
    zero_centred_norm: bool = False
    use_bias: bool = False
    use_out_bias: bool = False
    scale: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Positions, where they are used."""
        return () if self.rotary_base is None else ("positions",)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        heads, head_dim = self.sizes(host)
        if self.rotary_base is not None:
            mixer.require_even(f"{path}head_dim", head_dim, "rotary positions")
            turned = self.rotary_dim or head_dim
            if turned % 2 or turned > head_dim:
                raise ValueError(
                    f"{path}rotary_dim must be even and at most {head_dim}, "
                    f"the width of a head, got {turned}"
                )
        if heads % (self.key_value_heads or heads):
            raise ValueError(
                f"heads must be a multiple of {path}key_value_heads, got "
                f"heads={heads} and {path}key_value_heads="
                f"{self.key_value_heads}"
            )

    def build(self, host: mixer.Host, **module: Any) -> Attention:
        """The layer."""
        return Attention(
            *self.sizes(host),
            self.key_value_heads,
            self.window,
            self.rotary_base,
            self.output_gate,
            self.qk_norm,
            self.rotary_dim,
            self.full_width_norm,
            self.zero_centred_norm,
            self.use_bias,
            self.use_out_bias,
            self.scale,
            **self.common(host) | {"exchange": host.attention_exchange},
            **module,
        )

    def bounded(self, state: Any) -> Any:
        """The state, where it is to hold all tokens."""
        return None if self.window else state

    def flops(self, host: mixer.Host, length: int) -> float:
        """q . k and p . v with the mean number of tokens a query sees."""
        heads, head_dim = self.sizes(host)
        window = min(self.window or length, length)
        seen = window - window * (window - 1) / (2 * length)
        return 4.0 * heads * head_dim * seen
