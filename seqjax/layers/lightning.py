"""Lightning attention, the mixer of TransNormerLLM and MiniMax-01.

    S_t = lambda_h S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t
    y = W_o (rms(o) * sigmoid(W_g x)),    q, k, v = silu(W x)

TransNormerLLM is arXiv 2307.14995, lightning attention 2 arXiv 2401.04658.
The decay is a constant per head and layer (seqjax.layers.slopes); there is no
1/sqrt(K), and the norm runs over all heads together.  State H*K*K numbers a
row, cost O(K^2) per token and head; weak at recall, since nothing in the input
decides what is kept.
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
from seqjax.layers import slopes as slopes_lib


class LightningState(NamedTuple):
    """memory [B, H, K, K], float32."""

    memory: jax.Array


class Lightning(mixer.Mixer):
    """Lightning attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      head_dim: K; values are as wide.
      slopes: decay table: "minimax", "tnl_code" or "tnl_paper".
      layer: index of this layer in its model, for the decay table.
      layers: number of layers of the model, for the decay table.
      gate_rank: None for a full gate (MiniMax), or the inner width of a low
        rank one (TransNormerLLM: head_dim).
    """

    heads: int
    head_dim: int
    slopes: str = "minimax"
    layer: int = 0
    layers: int = 1
    gate_rank: int | None = None

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> LightningState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        shape = (batch, self.heads, self.head_dim, self.head_dim)
        return LightningState(jnp.zeros(shape, norms.wide(self.dtype)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: LightningState | None = None,
        segment_ids: jax.Array | None = None,
        log_decay: jax.Array | None = None,
    ) -> tuple[jax.Array, LightningState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          log_decay: float [H], at most 0; None takes row `layer` of the
            table.  A model that scans over layers passes each its row.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.

        Raises:
          ValueError: `layer` outside the model, or an unknown table.
        """
        if log_decay is None:
            log_decay = self._own_decay()
        heads, dim = self.heads, self.head_dim
        q, k, v = (
            nn.silu(projections.to_heads(x, heads, dim, self.dtype, name))
            for name in ("query", "key", "value")
        )
        o, memory = ops.lightning_attention(
            q,
            k,
            v,
            log_decay=log_decay.astype(norms.wide(self.dtype)),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        low = x
        if self.gate_rank is not None:
            low = nn.Dense(
                self.gate_rank, use_bias=False, dtype=self.dtype, name="gate_in"
            )(x)
        gate = projections.to_heads(low, heads, dim, self.dtype, "gate")
        flat = (*x.shape[:2], heads * dim)
        norm = norms.GatedRMSNorm("sigmoid", eps=self.eps, name="norm")
        o = norm(o.reshape(flat), gate.reshape(flat)).reshape(o.shape)
        y = projections.from_heads(
            o, x.shape[-1], self.dtype, self.residual_scale
        )
        return y, LightningState(memory)

    @nn.nowrap
    def _own_decay(self) -> jax.Array:
        if not 0 <= self.layer < self.layers:
            raise ValueError(
                f"layer must be in [0, layers), got layer={self.layer} and "
                f"layers={self.layers}"
            )
        table = slopes_lib.log_decay(self.slopes, self.heads, self.layers)
        return table[self.layer]


@dataclasses.dataclass(unsafe_hash=True)
class LightningOptions(mixer.HeadOptions):
    """Lightning attention in a model's config.

    Attributes:
      slopes: decay table, over all layers of the model.
      gate_rank: None for a full output gate, or its inner width.
    """

    shards_time: ClassVar[bool] = True

    slopes: slopes_lib.Slopes = "minimax"
    gate_rank: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """A row of the decay table."""
        return ("log_decay",)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        slopes_lib.check(self.slopes, host.depth, f"{path}slopes")

    def build(self, host: mixer.Host, **module: Any) -> Lightning:
        """The layer."""
        return Lightning(
            *self.sizes(host),
            slopes=self.slopes,
            layers=host.depth,
            gate_rank=self.gate_rank,
            **self.common(host),
            **module,
        )

    def tables(self, host: mixer.Host) -> dict[str, jax.Array]:
        """log_decay [L, H]."""
        heads, _ = self.sizes(host)
        return {
            "log_decay": slopes_lib.log_decay(self.slopes, heads, host.depth)
        }
