"""Mamba-2 and softmax attention side by side, as in Falcon-H1 (2507.22448).

    y = m_out mamba2(m_in x) + a_out attention(a_in x)

Both read the same normalised input and are added; the factors are part of the
model.  State and cost are those of the two.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax

from seqjax import ops
from seqjax.layers import attention as attention_lib
from seqjax.layers import mamba2 as mamba2_lib
from seqjax.layers import mixer
from seqjax.layers import swiglu


class Mamba2AttentionState(NamedTuple):
    """The states of the two."""

    mamba2: mamba2_lib.Mamba2State
    attention: ops.AttentionState | None


class Mamba2Attention(mixer.Mixer):
    """Two mixers side by side.

    Attributes, beside those of every `Mixer`:
      mamba2: the one, without a parent.
      attention: the other, likewise.
      mamba2_scales: factors on its input and output.
      attention_scales: likewise.
    """

    mamba2: mamba2_lib.Mamba2
    attention: attention_lib.Attention
    mamba2_scales: tuple[float, float] = (1.0, 1.0)
    attention_scales: tuple[float, float] = (1.0, 1.0)

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> Mamba2AttentionState:
        """The states before any token."""
        return Mamba2AttentionState(
            self.mamba2.init_state(batch, capacity),
            self.attention.init_state(batch, capacity),
        )

    def __call__(
        self,
        x: jax.Array,
        state: Mamba2AttentionState | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, Mamba2AttentionState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], as attention takes them.

        Returns:
          y [B, T, D] in `dtype`, and the states with these tokens added.
        """
        before, after = self.mamba2_scales
        y, first = self.mamba2(
            swiglu.scale(x, before),
            None if state is None else state.mamba2,
            segment_ids,
        )
        y = swiglu.scale(y, after)
        before, after = self.attention_scales
        more, second = self.attention(
            swiglu.scale(x, before),
            None if state is None else state.attention,
            segment_ids,
            positions,
        )
        y = y + swiglu.scale(more, after)
        return y, Mamba2AttentionState(first, second)


def _field(kind: type) -> Any:
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(unsafe_hash=True)
class Mamba2AttentionOptions(mixer.Options):
    """Mamba-2 and attention side by side in a model's config.

    Attributes:
      mamba2: options of the one.
      attention: options of the other.
      mamba2_scales: factors on its input and output.
      attention_scales: likewise.
    """

    shards_time: ClassVar[bool] = True

    mamba2: mamba2_lib.Mamba2Options = _field(mamba2_lib.Mamba2Options)
    attention: attention_lib.AttentionOptions = _field(
        attention_lib.AttentionOptions
    )
    mamba2_scales: tuple[float, float] = (1.0, 1.0)
    attention_scales: tuple[float, float] = (1.0, 1.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """What attention needs."""
        return self.attention.needs

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        self.mamba2.check(host, f"{path}mamba2.")
        self.attention.check(host, f"{path}attention.")
        for name in ("mamba2_scales", "attention_scales"):
            pair = getattr(self, name)
            numbers = isinstance(pair, tuple) and len(pair) == 2
            if not numbers or {*map(type, pair)} - {int, float}:
                raise ValueError(
                    f"{path}{name} must be two numbers, on input and output, "
                    f"got {pair!r}"
                )

    def check_sharded(
        self, host: mixer.Host, path: str, length: int, devices: int
    ) -> None:
        """Raises ValueError unless T can be sharded over so many devices."""
        self.mamba2.check_sharded(host, f"{path}mamba2.", length, devices)
        self.attention.check_sharded(host, f"{path}attention.", length, devices)

    def build(self, host: mixer.Host, **module: Any) -> Mamba2Attention:
        """The layer."""
        return Mamba2Attention(
            self.mamba2.build(host, parent=None),
            self.attention.build(host, parent=None),
            self.mamba2_scales,
            self.attention_scales,
            **self.common(host),
            **module,
        )

    def bounded(self, state: Any) -> Any:
        """The part of a layer's state that bounds how many tokens it takes."""
        return self.attention.bounded(state.attention)

    def flops(self, host: mixer.Host, length: int) -> float:
        """Forward FLOPs a token beside the projections."""
        return self.mamba2.flops(host, length) + self.attention.flops(
            host, length
        )
