"""Gated DeltaProduct: several corrections of the memory a token.

    S <- a_t S;   n times: S <- S + beta k (v - S^T k)^T
    o_t = S^T q_t / sqrt(K),   a = exp(-exp(A_log) softplus(W_a x + b))

Siems et al., arXiv 2502.10297.  Each of the n writes of a token has a key, a
value and a beta of its own; the decay acts once, before the first.  beta is in
(0, 2), and n writes make a product of n reflections, which can permute n + 1
keys.  State H*K*V + (W-1)*(Hk*K + n*(Hk*K + H*V)) numbers a row, cost
O(n*K*V) per token and head, and n times the projections of k and v.
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


class GatedDeltaProduct(delta_mixer.DeltaMixer):
    """Gated DeltaProduct layer.

    Attributes, beside those of `DeltaMixer`:
      writes: n, corrections a token.
      decay: whether the memory decays.
      output_gate: whether the output is gated.
    """

    writes: int = 2
    decay: bool = True
    output_gate: bool = True

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
        o, memory = ops.gated_delta_product(
            q,
            k,
            v,
            beta,
            log_decay,
            num_householder=self.writes,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(self, o, x, gated=self.output_gate)
        return y, delta_mixer.DeltaState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class GatedDeltaProductOptions(delta_mixer.DeltaOptions):
    """Gated DeltaProduct in a model's config.

    Attributes:
      writes: n, corrections a token.
      decay: whether the memory decays.
      output_gate: whether the output is gated.
    """

    shards_time: ClassVar[bool] = True

    value_expand: float = 2.0
    negative_eigenvalues: bool = True
    writes: int = 2
    decay: bool = True
    output_gate: bool = True

    def build(self, host: mixer.Host, **module: Any) -> GatedDeltaProduct:
        """The layer."""
        return GatedDeltaProduct(
            **self.delta_sizes(host),
            writes=self.writes,
            decay=self.decay,
            output_gate=self.output_gate,
            **self.common(host),
            **module,
        )

    def flops(self, host: mixer.Host, length: int) -> float:
        """Decay 1 and read 2 once, correction 2 and write 2 for each write."""
        heads, key_dim, value_dim = self.expanded_sizes(host)
        numbers = (self.value_heads or heads) * key_dim * value_dim
        return (3.0 + 4.0 * self.writes) * numbers
