"""HGRN: an elementwise gated linear recurrence.

    f_t = l + (1 - l) sigmoid(W_f x),   i_t = silu(W_i x)
    h_t = f_t * h_{t-1} + (1 - f_t) * i_t,   y = W_o (rms(h) * silu(W_g x))

Qin et al., arXiv 2311.04823.  The lower bound l grows from 0 in the first layer
with depth (`gates.lower_bounds`), so that upper layers remember longer.  The
norm runs over the whole width.  State E numbers a row, cost O(E) a token beside
the projections; a number a channel holds no associations, so recall is the
weakest of the mixers here.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import gates
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms


class HGRNState(NamedTuple):
    """memory [B, E]."""

    memory: jax.Array


class HGRN(mixer.Mixer):
    """HGRN layer.

    Attributes, beside those of every `Mixer`:
      inner: E, channels of the recurrence; D in the paper.
    """

    inner: int

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> HGRNState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        return HGRNState(jnp.zeros((batch, self.inner), norms.wide(self.dtype)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: HGRNState | None = None,
        segment_ids: jax.Array | None = None,
        lower_bound: jax.Array | None = None,
    ) -> tuple[jax.Array, HGRNState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          lower_bound: float [E] in [0, 1), this layer's row of
            `gates.lower_bounds`; None for 0.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """

        def project(name: str, dtype: jnp.dtype) -> jax.Array:
            return nn.Dense(self.inner, use_bias=False, dtype=dtype, name=name)(
                x
            )

        value = nn.silu(project("value", self.dtype))
        f = project("forget", norms.wide(self.dtype))
        if lower_bound is not None:
            lower_bound = lower_bound.reshape(1, 1, self.inner)
        log_decay, written = gates.lower_bounded_decay(f, lower_bound)
        h, memory = ops.linear_recurrence(
            written * value.astype(written.dtype),
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        gate = project("gate", self.dtype)
        o = norms.GatedRMSNorm(eps=self.eps, name="norm")(h, gate)
        y = nn.Dense(
            x.shape[-1],
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                nn.initializers.lecun_normal(), self.residual_scale
            ),
            name="out",
        )(o)
        return y, HGRNState(memory)


@dataclasses.dataclass(unsafe_hash=True)
class HGRNOptions(mixer.Options):
    """HGRN in a model's config.

    Attributes:
      expand: channels of the recurrence over the model's width.
      use_lower_bound: whether the forget gate has a learned lower bound.
    """

    shards_time: ClassVar[bool] = True

    expand: float = 1.0
    use_lower_bound: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """A row of the learned lower bounds."""
        return ("lower_bound",) if self.use_lower_bound else ()

    def lower_bound(self, host: mixer.Host) -> int | None:
        """E channels."""
        if not self.use_lower_bound:
            return None
        return mixer.expanded("expand", self.expand, host.width)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        mixer.expanded(f"{path}expand", self.expand, host.width)

    def build(self, host: mixer.Host, **module: Any) -> HGRN:
        """The layer."""
        return HGRN(
            round(self.expand * host.width), **self.common(host), **module
        )
