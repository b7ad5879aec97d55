"""Mamba: a selective state space, every channel with N decays of its own.

    h_t = exp(dt_t A) h_{t-1} + (dt_t u_t) B_t,   o_t = C_t h_t + D u_t
    y = W_o (o * silu(z))

Gu and Dao, arXiv 2312.00752.  u passes a short convolution with bias and silu;
dt = softplus(W_dt r + b), with r of low rank, B and C are projections of u;
A = -exp(A_log) starts at -1 .. -N.  dt and A are float32.  FalconMamba and
Jamba normalise r, B and C; Zamba has groups of channels, each with a selection
of its own.  State E*N + (W-1)*E numbers a row, cost O(E*N) a token; slow for
its size, since no matrix product composes its tokens (Mamba-2 mends that).
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import short_convolution

SelectionNorm = Literal["none", "plain", "scaled"]


class MambaState(NamedTuple):
    """conv [B, W-1, E] and memory [B, E, N]."""

    conv: jax.Array
    memory: jax.Array


class Mamba(mixer.Mixer):
    """Mamba layer; dt and A are float32 too.

    Attributes, beside those of every `Mixer`:
      inner: E, twice D in the paper.
      step_rank: of the map to dt; D / 16, rounded up, in the paper.
      state_size: N.
      conv_width: W, tokens the convolution sees, the current one included.
      conv_bias: whether the convolution has a bias.
      use_bias: whether the projections in and out have one.
      selection_norm: RMS norm of r, B and C each: "none", "plain" (no
        parameters; FalconMamba) or "scaled" (Jamba).
      groups: of channels, each with its own r, B and C, made from its own u.
    """

    inner: int
    step_rank: int
    state_size: int = 16
    conv_width: int = 4
    conv_bias: bool = True
    use_bias: bool = False
    selection_norm: str = "none"
    groups: int = 1

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> MambaState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        return MambaState(
            jnp.zeros((batch, self.conv_width - 1, self.inner), wide),
            jnp.zeros((batch, self.inner, self.state_size), wide),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: MambaState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, MambaState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        width, size = x.shape[-1], self.state_size
        uz = nn.Dense(
            2 * self.inner,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=initializers.fan_in_uniform(width),
            name="in",
        )(x)
        u, z = jnp.split(uz, 2, axis=-1)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, self.conv_bias, self.axis_name, name="conv"
        )
        u, conv = convolve(
            u, None if state is None else state.conv, segment_ids
        )
        dt, B, C = self._selection(u)
        A_log = self.param("A_log", _log_range, (self.inner, size), jnp.float32)
        D = self.param("D", nn.initializers.ones, (self.inner,), jnp.float32)
        y, memory = ops.selective_scan(
            u,
            dt,
            -jnp.exp(A_log.astype(dt.dtype)),
            B,
            C,
            D=D.astype(dt.dtype),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = nn.Dense(
            width,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                initializers.fan_in_uniform(self.inner), self.residual_scale
            ),
            name="out",
        )(y * nn.silu(z))
        return y, MambaState(conv, memory)

    def _selection(self, u: jax.Array) -> tuple[jax.Array, ...]:
        """dt [B, T, E], B and C [B, T, G, N]."""
        rank, size, wide = self.step_rank, self.state_size, self.inner
        if wide % self.groups:
            raise ValueError(
                f"groups must divide inner={wide}, got {self.groups}"
            )
        channels = wide // self.groups
        grouped = u.reshape(*u.shape[:2], self.groups, channels)
        selection = projections.Grouped(
            rank + 2 * size,
            dtype=self.dtype,
            kernel_init=initializers.fan_in_uniform(channels),
            name="select",
        )(grouped)
        low, B, C = jnp.split(selection, [rank, rank + size], axis=-1)
        low, B, C = (
            self._normed(part, name)
            for part, name in ((low, "step"), (B, "B"), (C, "C"))
        )
        dt = projections.Grouped(
            channels,
            dtype=norms.wide(self.dtype),
            kernel_init=initializers.fan_in_uniform(rank),
            bias_init=initializers.inverse_softplus_step(),
            name="dt",
        )(low)
        return jax.nn.softplus(dt.reshape(u.shape)), B, C

    def _normed(self, x: jax.Array, name: str) -> jax.Array:
        if self.selection_norm == "none":
            return x
        if self.selection_norm == "plain":
            return ops.rms_normalize(x, self.eps).astype(x.dtype)
        return norms.RMSNorm(self.eps, name=f"{name}_norm")(x)


def _log_range(key, shape, dtype):
    """log(1 .. N) in every channel."""
    del key
    return jnp.broadcast_to(
        jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape
    )


@dataclasses.dataclass(unsafe_hash=True)
class MambaOptions(mixer.Options):
    """Mamba in a model's config.

    Attributes:
      expand: inner width over the model's width.
      step_rank: of the map to the time step; None for width / 16, rounded up.
      state_size: N.
      conv_width: tokens the short convolution sees.
      conv_bias: whether it has a bias.
      use_bias: whether the projections in and out have one.
      selection_norm: RMS norm of the rank's channels, B and C: "none", "plain"
        (no parameters) or "scaled".
      groups: of channels, each with a selection of its own.
    """

    shards_time: ClassVar[bool] = True

    expand: float = 2.0
    step_rank: int | None = None
    state_size: int = 16
    conv_width: int = 4
    conv_bias: bool = True
    use_bias: bool = False
    selection_norm: SelectionNorm = "none"
    groups: int = 1

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        inner = mixer.expanded(f"{path}expand", self.expand, host.width)
        if inner % self.groups:
            raise ValueError(
                f"{path}groups must divide {path}expand * width, {inner}, got "
                f"{self.groups}"
            )

    def build(self, host: mixer.Host, **module: Any) -> Mamba:
        """The layer."""
        return Mamba(
            round(self.expand * host.width),
            self.step_rank or math.ceil(host.width / 16),
            self.state_size,
            self.conv_width,
            self.conv_bias,
            self.use_bias,
            self.selection_norm,
            self.groups,
            **self.common(host),
            **module,
        )
