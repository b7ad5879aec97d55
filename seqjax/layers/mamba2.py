"""Mamba-2: a selective state space with one decay a head (arXiv 2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
    out = W_o rms(y * silu(z))

x, B and C pass a short convolution with bias and silu; dt = softplus(. + b) and
A = -exp(A_log) are float32.  Note the order of the last step: gate, then norm.
State H*P*N + (W-1)*(H*P + 2*G*N) numbers a row, cost O(P*N) per token and head;
the largest state of the mixers here, recall grows with N.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import norms
from seqjax.layers import short_convolution


class Mamba2State(NamedTuple):
    """conv [B, W-1, H*P + 2*G*N] and memory [B, H, P, N]."""

    conv: jax.Array
    memory: jax.Array


class Mamba2(nn.Module):
    """Mamba-2 layer.

    Attributes:
      heads: H; the inner width is heads * head_dim, twice D in the paper.
      head_dim: P.
      state_size: N.
      groups: G; heads of a group share B and C, and the norm is per group.
      conv_width: W, tokens the convolution sees, the current one included.
      eps: of the norm.
      dtype: of the computation; parameters, dt and A are float32.
      residual_scale: factor on the initial output projection.
      axis_name: mesh axis that shards T, inside `jax.shard_map`.
    """

    heads: int
    head_dim: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0
    axis_name: str | None = None

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
