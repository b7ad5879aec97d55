"""Kimi Delta Attention: the delta rule with a decay for every key channel.

    S' = diag(exp(g_t)) S_{t-1}
    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,   o_t = S_t^T q_t / sqrt(K)
    g = -exp(A_log) softplus(W_2 W_1 x + b),   y = W_o (rms(o) * sigmoid(G x))

Kimi Linear, arXiv 2510.26692.  A ~ U(1, 16), one a head; the maps of the decay
and of the output gate go through as many channels as a head has.  With a floor
(-5, "safe gate") no decay of one token is stronger than it.  State
H*K*V + (W-1)*(2*Hk*K + H*V) numbers a row, cost O(K*V) per token and head, the
dearest here per number of the state for its channel decays.
"""

import dataclasses
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax

from seqjax import ops
from seqjax.layers import convolved
from seqjax.layers import decay as decay_lib
from seqjax.layers import delta_mixer
from seqjax.layers import fields
from seqjax.layers import mixer
from seqjax.layers import projections


class KDA(delta_mixer.DeltaMixer):
    """Kimi Delta Attention layer.

    Attributes, beside those of `DeltaMixer`:
      gate_rank: inner width of the maps of the decay and of the output gate;
        None for full matrices.
      gate_bias: whether the output gate has a bias.
      floor: None, or the strongest log decay of a token, below 0.
    """

    gate_rank: int | None = None
    gate_bias: bool = True
    floor: float | None = None

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
        log_decay = decay_lib.StepDecay(
            self.memories,
            self.key_dim,
            self.gate_rank,
            (1.0, 16.0),
            self.floor,
            self.dtype,
            name="decay",
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
        gate = convolved.low_rank(
            x,
            self.gate_rank,
            self.memories * self.value_dim,
            "gate",
            use_bias=self.gate_bias,
            dtype=self.dtype,
        )
        y = projections.read_out(self, o, x, gate=gate, activation="sigmoid")
        return y, delta_mixer.DeltaState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class KDAOptions(delta_mixer.DeltaOptions):
    """Kimi Delta Attention in a model's config.

    Attributes:
      full_gates: full matrices for the decay and the output gate, in the place
        of maps through as many channels as a value head has.
      gate_bias: whether the output gate has a bias.
      floor: None, or the strongest log decay of a token: -5 is the "safe
        gate".
    """

    shards_time: ClassVar[bool] = True

    full_gates: bool = False
    gate_bias: bool = True
    floor: float | None = fields.bounded(None, -math.inf, -1e-3)

    def build(self, host: mixer.Host, **module: Any) -> KDA:
        """The layer."""
        _, _, value_dim = self.expanded_sizes(host)
        return KDA(
            **self.delta_sizes(host),
            gate_rank=None if self.full_gates else value_dim,
            gate_bias=self.gate_bias,
            floor=self.floor,
            **self.common(host),
            **module,
        )
