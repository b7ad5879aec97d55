"""Comba: a delta rule with feedback on the state and on the query.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T,   p = sigmoid(c) k
    o_t = S_t^T (q_t - D p_t) / sqrt(K),   y = W_o (rms(o) * sigmoid(W_g x))

Hu et al., arXiv 2506.02475.  The correction reads the state before its decay,
with a key that a learned factor shortens, one a head; D corrects the query,
before queries and keys become unit vectors.  In the released code p becomes
one as well, so that the factor c is left to the query alone: that is the
default, and `unit_inner_key=False` the paper's.  The decay is Gated DeltaNet's.
State H*K*V + (W-1)*(2*Hk*K + H*V) numbers a row, cost O(K*V) per token and
head.
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import decay as decay_lib
from seqjax.layers import delta_mixer
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class Comba(delta_mixer.DeltaMixer):
    """Comba layer.

    Attributes, beside those of `DeltaMixer`:
      inner_decay: whether p is shorter than k.
      unit_inner_key: whether the correction reads with p over its length.
      output_correction: whether the query is corrected.
      correction_factor: initial D.
      output_gate: whether the output is gated.
    """

    inner_decay: bool = True
    unit_inner_key: bool = True
    output_correction: bool = True
    correction_factor: float = 1.0
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
        q, k, v, beta, conv = self.inputs(
            x, state, segment_ids, normalize=False
        )

        def per_head(name: str, initial: float) -> jax.Array:
            init = nn.initializers.constant(initial)
            value = self.param(name, init, (self.heads,), jnp.float32)
            return value.astype(norms.wide(k.dtype))[None, None, :, None]

        factor = 1.0
        if self.inner_decay:
            factor = nn.sigmoid(per_head("inner_decay", 1.0))
        if self.output_correction:
            D = per_head("D", self.correction_factor)
            q = q - (D * factor * k).astype(q.dtype)
        q, k = norms.l2_normalize(q), norms.l2_normalize(k)
        p = k if self.unit_inner_key else (factor * k).astype(k.dtype)
        log_decay = decay_lib.StepDecay(
            self.memories, dtype=self.dtype, name="decay"
        )(x)
        o, memory = ops.comba(
            q,
            k,
            v,
            p,
            beta,
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = projections.read_out(
            self, o, x, gated=self.output_gate, activation="sigmoid"
        )
        return y, delta_mixer.DeltaState(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class CombaOptions(delta_mixer.DeltaOptions):
    """Comba in a model's config.

    Attributes:
      inner_decay: whether the key of the correction is shortened.
      unit_inner_key: whether it is then made a unit vector, as released.
      output_correction: whether the query is corrected.
      correction_factor: initial factor of that correction.
      output_gate: whether the output is gated.
    """

    shards_time: ClassVar[bool] = True

    value_expand: float = 2.0
    inner_decay: bool = True
    unit_inner_key: bool = True
    output_correction: bool = True
    correction_factor: float = 1.0
    output_gate: bool = True

    def build(self, host: mixer.Host, **module: Any) -> Comba:
        """The layer."""
        return Comba(
            **self.delta_sizes(host),
            inner_decay=self.inner_decay,
            unit_inner_key=self.unit_inner_key,
            output_correction=self.output_correction,
            correction_factor=self.correction_factor,
            output_gate=self.output_gate,
            **self.common(host),
            **module,
        )
