"""DeltaNet and Gated DeltaNet: a memory that corrects what it holds.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T
    o_t = S_t^T q_t / sqrt(K)
    a = 1 (DeltaNet),   a = exp(-exp(A_log) softplus(W_a x + b)) (gated)

DeltaNet over sequences: arXiv 2406.06484; Gated DeltaNet: arXiv 2412.06464,
with A ~ U(0, 16).  The decay comes before the read.  The output is normalised
per head; Gated DeltaNet then gates it with silu.  State
H*K*V + (W-1)*(2*Hk*K + H*V) numbers a row, cost O(K*V) per token and head, some
1.5 times that of an additive rule.  Without a gate it cannot clear its memory
at once; a single write a token cannot permute what is held.
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax

from seqjax import ops
from seqjax.layers import decay as decay_lib
from seqjax.layers import delta_mixer
from seqjax.layers import mixer
from seqjax.layers import projections


class DeltaNet(delta_mixer.DeltaMixer):
    """Delta rule layer, with or without a decay a head.

    Attributes, beside those of `DeltaMixer`:
      decay: whether the memory decays (Gated DeltaNet).
      output_gate: whether the output is gated.
    """

    decay: bool = False
    output_gate: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: delta_mixer.DeltaState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, delta_mixer.DeltaState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        q, k, v, beta, conv = self.inputs(x, state, segment_ids)
        log_decay = None
        if self.decay:
            log_decay = decay_lib.StepDecay(
                self.memories, dtype=self.dtype, name="decay"
            )(x)
        o, memory = ops.delta_rule(
            q,
            k,
            v,
            beta,
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(self, o, x, gated=self.output_gate)
        return y, delta_mixer.DeltaState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class DeltaNetOptions(delta_mixer.DeltaOptions):
    """DeltaNet in a model's config.

    Attributes:
      output_gate: whether the output is gated.
    """

    shards_time: ClassVar[bool] = True

    decay: ClassVar[bool] = False

    output_gate: bool = False

    def build(self, host: mixer.Host, **module: Any) -> DeltaNet:
        """The layer."""
        return DeltaNet(
            **self.delta_sizes(host),
            decay=self.decay,
            output_gate=self.output_gate,
            **self.common(host),
            **module,
        )


@dataclasses.dataclass(unsafe_hash=True)
class GatedDeltaNetOptions(DeltaNetOptions):
    """Gated DeltaNet in a model's config: values are twice as wide as keys."""

    decay: ClassVar[bool] = True

    value_expand: float = 2.0
    output_gate: bool = True
