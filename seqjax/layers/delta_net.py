"""DeltaNet and Gated DeltaNet: a memory that corrects what it holds.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T
    o_t = S_t^T q_t / sqrt(K),   beta = sigmoid(W_b x)
    a = 1 (DeltaNet),   a = exp(-exp(A_log) softplus(W_a x + b)) (gated)

DeltaNet over sequences: arXiv 2406.06484; Gated DeltaNet: arXiv 2412.06464.
q, k, v pass a short convolution and silu, q and k are unit vectors.  With beta
in [0, 2] the transition has negative eigenvalues, which state tracking needs
(arXiv 2411.12537).  The output is normalised per head; Gated DeltaNet then
gates it with silu.  State H*K*V + (W-1)*(2*Hk*K + H*V) numbers a row, cost
O(K*V) per token and head, some 1.5 times that of an additive rule; without a
gate it cannot clear its memory at once.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import convolved
from seqjax.layers import decay as decay_lib
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections


class DeltaNetState(NamedTuple):
    """conv [B, W-1, 2*Hk*K + H*V] or None, and memory [B, H, K, V]."""

    conv: jax.Array | None
    memory: jax.Array


class DeltaNet(mixer.Mixer):
    """Delta rule layer, with or without a decay.

    Attributes, beside those of every `Mixer`:
      heads: Hk, of queries and keys.
      key_dim: K, of a head.
      value_dim: V, of a head.
      value_heads: H, a multiple of heads; None for as many.
      decay: whether the memory decays (Gated DeltaNet).
      output_gate: whether the output is gated.
      negative_eigenvalues: beta in [0, 2] instead of [0, 1].
      conv_width: tokens the convolution sees; None for no convolution.
    """

    heads: int
    key_dim: int
    value_dim: int
    value_heads: int | None = None
    decay: bool = False
    output_gate: bool = False
    negative_eigenvalues: bool = False
    conv_width: int | None = 4

    @nn.nowrap
    def _widths(self) -> tuple[int, int, int]:
        keys = self.heads * self.key_dim
        return keys, keys, (self.value_heads or self.heads) * self.value_dim

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> DeltaNetState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        heads = self.value_heads or self.heads
        memory = (batch, heads, self.key_dim, self.value_dim)
        return DeltaNetState(
            convolved.empty(batch, self._widths(), self.conv_width, self.dtype),
            jnp.zeros(memory, norms.wide(self.dtype)),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: DeltaNetState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, DeltaNetState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        heads = self.value_heads or self.heads
        (q, k, v), conv = convolved.project(
            x,
            self._widths(),
            self.conv_width,
            None if state is None else state.conv,
            segment_ids,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        keys = (*x.shape[:2], self.heads, self.key_dim)
        beta = write_strength(
            x, heads, self.dtype, twice=self.negative_eigenvalues
        )
        decay = None
        if self.decay:
            decay = decay_lib.StepDecay(heads, dtype=self.dtype, name="decay")(
                x
            )
        o, memory = ops.delta_rule(
            norms.l2_normalize(q.reshape(keys)),
            norms.l2_normalize(k.reshape(keys)),
            v.reshape(*x.shape[:2], heads, self.value_dim),
            beta,
            decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
        )
        y = projections.read_out(self, o, x, gated=self.output_gate)
        return y, DeltaNetState(conv, memory)


def write_strength(
    x: jax.Array, count: int, dtype: jnp.dtype, *, twice: bool
) -> jax.Array:
    """beta [B, T, count] in (0, 1), or (0, 2); makes the module "beta"."""
    beta = nn.sigmoid(
        nn.Dense(count, use_bias=False, dtype=norms.wide(dtype), name="beta")(x)
    )
    return 2 * beta if twice else beta


@dataclasses.dataclass(unsafe_hash=True)
class DeltaNetOptions(mixer.ExpandedOptions):
    """DeltaNet in a model's config.

    Attributes:
      value_heads: H, a multiple of heads; None for as many.
      output_gate: whether the output is gated.
      negative_eigenvalues: beta in [0, 2] instead of [0, 1].
      conv_width: tokens the convolution sees; None for no convolution.
    """

    # Decay 1, read for the correction 2, write 2, read 2.
    flops_per_state: ClassVar[float] = 7.0
    decay: ClassVar[bool] = False

    value_heads: int | None = None
    output_gate: bool = False
    negative_eigenvalues: bool = False
    conv_width: int | None = 4

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        heads, _ = self.sizes(host)
        mixer.require_multiple(f"{path}value_heads", self.value_heads, heads)

    def build(self, host: mixer.Host, **module: Any) -> DeltaNet:
        """The layer."""
        return DeltaNet(
            *self.expanded_sizes(host),
            self.value_heads,
            self.decay,
            self.output_gate,
            self.negative_eigenvalues,
            self.conv_width,
            **host.common(),
            **module,
        )


@dataclasses.dataclass(unsafe_hash=True)
class GatedDeltaNetOptions(DeltaNetOptions):
    """Gated DeltaNet in a model's config; values are twice as wide as keys."""

    decay: ClassVar[bool] = True

    value_expand: float = 2.0
    output_gate: bool = True
