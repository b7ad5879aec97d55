"""RetNet's multi-scale retention (arXiv 2307.08621).

    S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K)
    y = W_o (rms(o) * silu(W_g x)),      gamma_h = 1 - 2^(-5-h)

q and k are rotated by position; values are wider than keys (2x in the paper).
The paper's row normalisers are positive numbers per token and head, which the
norm that follows removes, so they are left out.  State H*K*V numbers a row,
cost O(K*V) per token and head; weak at recall, since the decay is fixed.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import rotary


class RetNetState(NamedTuple):
    """memory [B, H, K, V], float32."""

    memory: jax.Array


class RetNet(mixer.Mixer):
    """Retention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      head_dim: K, even.
      value_expand: V / K.
      rotary_base: of the rotary angles.
    """

    heads: int
    head_dim: int
    value_expand: float = 2.0
    rotary_base: float = 10000.0

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> RetNetState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        value_dim = round(self.value_expand * self.head_dim)
        shape = (batch, self.heads, self.head_dim, value_dim)
        return RetNetState(jnp.zeros(shape, norms.wide(self.dtype)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: RetNetState | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, RetNetState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], index of each token in its document; needed
            along with a state or axis_name.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        value_dim = round(self.value_expand * self.head_dim)
        positions = rotary.positions_or_default(
            positions,
            segment_ids,
            x.shape[:2],
            continued=state is not None or self.axis_name is not None,
        )

        def project(name: str, features: int) -> jax.Array:
            init = initializers.xavier(2**-2.5)
            return projections.to_heads(
                x, self.heads, features, self.dtype, name, init
            )

        q = rotary.rotate(
            project("query", self.head_dim), positions, self.rotary_base
        )
        k = rotary.rotate(
            project("key", self.head_dim), positions, self.rotary_base
        )
        v = project("value", value_dim)
        o, memory = ops.retention(
            q,
            k,
            v,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        o = norms.GatedRMSNorm(eps=self.eps, name="norm")(
            o, project("gate", value_dim)
        )
        y = projections.from_heads(
            o,
            x.shape[-1],
            self.dtype,
            self.residual_scale,
            nn.initializers.xavier_uniform(),
        )
        return y, RetNetState(memory)


@dataclasses.dataclass(unsafe_hash=True)
class RetNetOptions(mixer.HeadOptions):
    """RetNet in a model's config.

    Attributes:
      value_expand: value width of a head over its key width.
      rotary_base: of the rotary angles.
    """

    shards_time: ClassVar[bool] = True

    value_expand: float = 2.0
    rotary_base: float = 10000.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Rotary positions."""
        return ("positions",)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        _, head_dim = self.sizes(host)
        mixer.require_even(f"{path}head_dim", head_dim, "rotary positions")
        mixer.expanded(f"{path}value_expand", self.value_expand, head_dim)

    def build(self, host: mixer.Host, **module: Any) -> RetNet:
        """The layer."""
        return RetNet(
            *self.sizes(host),
            self.value_expand,
            self.rotary_base,
            **self.common(host),
            **module,
        )
