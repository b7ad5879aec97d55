"""What the layers of the delta family share.

q, k and v pass a short convolution and silu, q and k are made unit vectors, and
beta = sigmoid(W_b x) says how strongly a value is written, up to 2 where
negative eigenvalues are wanted (arXiv 2411.12537): without them a linear
recurrence cannot follow a state that alternates.
"""

import dataclasses
from typing import ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import convolved
from seqjax.layers import mixer
from seqjax.layers import norms


class DeltaState(NamedTuple):
    """conv [B, W-1, Hk*K + n*(Hk*K + H*V)] or None, memory [B, H, K, V]."""

    conv: jax.Array | None
    memory: jax.Array


class DeltaInputs(NamedTuple):
    """Inputs of a delta operator, with n writes a token.

    q [B, T, Hk, K], k [B, T*n, Hk, K], v [B, T*n, H, V], beta [B, T*n, H], and
    the state of the convolution.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    beta: jax.Array
    conv: jax.Array | None


class DeltaMixer(mixer.Mixer):
    """Base of the layers of the delta family.

    Attributes, beside those of every `Mixer`:
      heads: Hk, of queries and keys.
      key_dim: K, of a head.
      value_dim: V, of a head.
      value_heads: H, a multiple of heads; None for as many.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1).
      conv_width: tokens the convolution sees; None for no convolution.
    """

    heads: int
    key_dim: int
    value_dim: int
    value_heads: int | None = None
    negative_eigenvalues: bool = False
    conv_width: int | None = 4

    # Writes a token.
    writes: ClassVar[int] = 1

    @property
    def memories(self) -> int:
        """H, number of states and of value heads."""
        return self.value_heads or self.heads

    @nn.nowrap
    def _widths(self) -> tuple[int, int, int]:
        keys = self.heads * self.key_dim
        values = self.memories * self.value_dim
        return keys, self.writes * keys, self.writes * values

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> DeltaState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        memory = (batch, self.memories, self.key_dim, self.value_dim)
        return DeltaState(
            convolved.empty(batch, self._widths(), self.conv_width, self.dtype),
            jnp.zeros(memory, norms.wide(self.dtype)),
        )

    def inputs(
        self,
        x: jax.Array,
        state: DeltaState | None,
        segment_ids: jax.Array | None,
        *,
        normalize: bool = True,
    ) -> DeltaInputs:
        """Makes them from x [B, T, D], q and k unit vectors if normalize."""
        (q, k, v), conv = convolved.project(
            x,
            self._widths(),
            self.conv_width,
            None if state is None else state.conv,
            segment_ids,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        batch, length = x.shape[:2]
        steps = length * self.writes
        beta = nn.sigmoid(
            nn.Dense(
                self.writes * self.memories,
                use_bias=False,
                dtype=norms.wide(self.dtype),
                name="beta",
            )(x)
        ).reshape(batch, steps, self.memories)
        q = q.reshape(batch, length, self.heads, -1)
        k = k.reshape(batch, steps, self.heads, -1)
        return DeltaInputs(
            norms.l2_normalize(q) if normalize else q,
            norms.l2_normalize(k) if normalize else k,
            v.reshape(batch, steps, self.memories, -1),
            2 * beta if self.negative_eigenvalues else beta,
            conv,
        )


@dataclasses.dataclass(unsafe_hash=True)
class DeltaOptions(mixer.ExpandedOptions):
    """Options of the delta family in a model's config.

    Attributes:
      value_heads: H, a multiple of heads; None for as many.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1).
      conv_width: tokens the convolution sees; None for no convolution.
    """

    # Decay 1, read for the correction 2, write 2, read 2.
    flops_per_state: ClassVar[float] = 7.0

    value_heads: int | None = None
    negative_eigenvalues: bool = False
    conv_width: int | None = 4

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        heads, _ = self.sizes(host)
        if (self.value_heads or heads) % heads:
            raise ValueError(
                f"{path}value_heads must be a multiple of the number of heads, "
                f"{heads}, got {self.value_heads}"
            )

    def delta_sizes(self, host: mixer.Host) -> dict[str, int | bool | None]:
        """The fields of every `DeltaMixer`."""
        heads, key_dim, value_dim = self.expanded_sizes(host)
        return {
            "heads": heads,
            "key_dim": key_dim,
            "value_dim": value_dim,
            "value_heads": self.value_heads,
            "negative_eigenvalues": self.negative_eigenvalues,
            "conv_width": self.conv_width,
        }
