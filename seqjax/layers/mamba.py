"""Mamba: a selective state space, every channel with N decays of its own.

    h_t = exp(dt_t A) h_{t-1} + (dt_t u_t) B_t,   o_t = C_t h_t + D u_t
    y = W_o (o * silu(z))

Gu and Dao, arXiv 2312.00752.  u passes a short convolution with bias and silu;
dt = softplus(W_dt r + b), with r of low rank, B and C are projections of u;
A = -exp(A_log) starts at -1 .. -N.  dt and A are float32.  There is no norm
inside.  State E*N + (W-1)*E numbers a row, cost O(E*N) a token; slow for its
size, since no matrix product composes its tokens (Mamba-2 mends that).
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import short_convolution


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
    """

    inner: int
    step_rank: int
    state_size: int = 16
    conv_width: int = 4

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
        width = x.shape[-1]

        def dense(features: int, fan_in: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.fan_in_uniform(fan_in),
                name=name,
            )

        u, z = jnp.split(dense(2 * self.inner, width, "in")(x), 2, axis=-1)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, True, self.axis_name, name="conv"
        )
        u, conv = convolve(
            u, None if state is None else state.conv, segment_ids
        )
        rank, size = self.step_rank, self.state_size
        selection = dense(rank + 2 * size, self.inner, "select")(u)
        low, B, C = jnp.split(selection, [rank, rank + size], axis=-1)
        dt = nn.Dense(
            self.inner,
            dtype=norms.wide(self.dtype),
            kernel_init=initializers.fan_in_uniform(rank),
            bias_init=initializers.inverse_softplus_step(),
            name="dt",
        )(low)
        dt = jax.nn.softplus(dt)
        A_log = self.param("A_log", _log_range, (self.inner, size), jnp.float32)
        D = self.param("D", nn.initializers.ones, (self.inner,), jnp.float32)
        y, memory = ops.selective_scan(
            u,
            dt,
            -jnp.exp(A_log.astype(dt.dtype)),
            B[:, :, None],
            C[:, :, None],
            D=D.astype(dt.dtype),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        y = nn.Dense(
            width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                initializers.fan_in_uniform(self.inner), self.residual_scale
            ),
            name="out",
        )(y * nn.silu(z))
        return y, MambaState(conv, memory)


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
    """

    shards_time: ClassVar[bool] = True

    expand: float = 2.0
    step_rank: int | None = None
    state_size: int = 16
    conv_width: int = 4

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        mixer.expanded(f"{path}expand", self.expand, host.width)

    def build(self, host: mixer.Host, **module: Any) -> Mamba:
        """The layer."""
        return Mamba(
            round(self.expand * host.width),
            self.step_rank or math.ceil(host.width / 16),
            self.state_size,
            self.conv_width,
            **self.common(host),
            **module,
        )
