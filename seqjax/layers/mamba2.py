"""Mamba-2: a selective state space with one decay a head (arXiv 2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
    out = W_o rms(y * silu(z))

x, B and C pass a short convolution with bias and silu; dt = softplus(. + b) and
A = -exp(A_log) are float32.  Note the order of the last step: gate, then norm.
State H*P*N + (W-1)*(H*P + 2*G*N) numbers a row, cost O(P*N) per token and head;
the largest state of the mixers here, recall grows with N.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import short_convolution


class Mamba2State(NamedTuple):
    """conv [B, W-1, H*P + 2*G*N] and memory [B, H, P, N]."""

    conv: jax.Array
    memory: jax.Array


class Mamba2(mixer.Mixer):
    """Mamba-2 layer; dt and A are float32 too.

    Attributes, beside those of every `Mixer`:
      heads: H; the inner width is heads * head_dim, twice D in the paper.
      head_dim: P.
      state_size: N.
      groups: G; heads of a group share B and C, and the norm is per group.
      conv_width: W, tokens the convolution sees, the current one included.
    """

    heads: int
    head_dim: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4

    @nn.nowrap
    def _channels(self) -> tuple[int, int]:
        """Channels of x, and of B or C."""
        return self.heads * self.head_dim, self.groups * self.state_size

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> Mamba2State:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        inner, shared = self._channels()
        memory = (batch, self.heads, self.head_dim, self.state_size)
        return Mamba2State(
            jnp.zeros((batch, self.conv_width - 1, inner + 2 * shared), wide),
            jnp.zeros(memory, wide),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: Mamba2State | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, Mamba2State]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        inner, shared = self._channels()
        width = x.shape[-1]
        uniform = initializers.fan_in_uniform(width)
        zxbc = nn.Dense(
            2 * inner + 2 * shared,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=uniform,
            name="in",
        )(x)
        z, xbc = jnp.split(zxbc, [inner], axis=-1)
        dt = nn.Dense(
            self.heads,
            dtype=norms.wide(self.dtype),
            kernel_init=uniform,
            bias_init=initializers.inverse_softplus_step(),
            name="dt",
        )(x)
        dt = jax.nn.softplus(dt)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, True, self.axis_name, name="conv"
        )
        xbc, conv = convolve(
            xbc, None if state is None else state.conv, segment_ids
        )
        u, B, C = jnp.split(xbc, [inner, inner + shared], axis=-1)
        A_log = self.param(
            "A_log",
            initializers.log_uniform(1, 16),
            (self.heads,),
            jnp.float32,
        )
        D = self.param("D", nn.initializers.ones, (self.heads,), jnp.float32)
        grouped = (*x.shape[:2], self.groups, self.state_size)
        y, memory = ops.ssd(
            u.reshape(*x.shape[:2], self.heads, self.head_dim),
            dt,
            -jnp.exp(A_log.astype(dt.dtype)),
            B.reshape(grouped),
            C.reshape(grouped),
            D=D.astype(dt.dtype),
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
        )
        y = norms.GatedRMSNorm(
            gate_first=True, groups=self.groups, eps=self.eps, name="norm"
        )(y.reshape(z.shape), z)
        y = nn.Dense(
            width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                initializers.fan_in_uniform(inner), self.residual_scale
            ),
            name="out",
        )(y)
        return y, Mamba2State(conv, memory)


@dataclasses.dataclass(unsafe_hash=True)
class Mamba2Options(mixer.Options):
    """Mamba-2 in a model's config.

    Attributes:
      expand: inner width over the model's width.
      head_dim: P; there are expand * width / head_dim heads.
      state_size: N.
      groups: G, groups of heads that share B and C.
      conv_width: tokens the short convolution sees.
    """

    expand: float = 2.0
    head_dim: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        inner = mixer.expanded(f"{path}expand", self.expand, host.width)
        if inner % self.head_dim:
            raise ValueError(
                f"{path}expand * width must be a multiple of {path}head_dim, "
                f"got {self.expand:g} * {host.width} and {self.head_dim}"
            )
        heads = inner // self.head_dim
        if heads % self.groups:
            raise ValueError(
                f"{path}groups must divide the number of heads, {heads} "
                f"({path}expand * width / {path}head_dim), got {self.groups}"
            )

    def build(self, host: mixer.Host, **module: Any) -> Mamba2:
        """The layer."""
        return Mamba2(
            round(self.expand * host.width) // self.head_dim,
            self.head_dim,
            self.state_size,
            self.groups,
            self.conv_width,
            **self.common(host),
            **module,
        )
