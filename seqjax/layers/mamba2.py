"""Mamba-2: a selective state space with one decay a head (arXiv 2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
    out = W_o rms(y * silu(z))

x, B and C pass a short convolution with bias and silu; dt = softplus(. + b) and
A = -exp(A_log) are float32.  Note the order of the last step: gate, then norm.
Descendants differ there, in biases and in bounds of dt, hence the options.
State H*P*N + (W-1)*(H*P + 2*G*N) numbers a row, cost O(P*N) per token and head;
the largest state of the mixers here, recall grows with N.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops
from seqjax.layers import fields
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import short_convolution
from seqjax.layers import swiglu

Norm = Literal["gate_first", "norm_first", "none"]


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
      conv_bias: whether the convolution has a bias.
      use_bias: whether the projections in and out have one.
      norm: rms(y * silu(z)), rms(y) * silu(z) or y * silu(z).
      norm_groups: groups of channels that are normalised apart; None for G.
      step_range: dt is kept between these numbers, which may be 0 and inf.
      scales: factors on z, x, B, C and dt as they are projected.
    """

    heads: int
    head_dim: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4
    conv_bias: bool = True
    use_bias: bool = False
    norm: Norm = "gate_first"
    norm_groups: int | None = None
    step_range: tuple[float, float] = (0.0, math.inf)
    scales: tuple[float, ...] = (1.0,) * 5

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
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=uniform,
            name="in",
        )(x)
        if set(self.scales[:4]) != {1}:
            sizes = np.array([inner, inner, shared, shared])
            factors = np.repeat(np.array(self.scales[:4]), sizes)
            zxbc = zxbc * norms.expand(jnp.asarray(factors, zxbc.dtype), zxbc)
        z, xbc = jnp.split(zxbc, [inner], axis=-1)
        dt = nn.Dense(
            self.heads,
            dtype=norms.wide(self.dtype),
            kernel_init=uniform,
            bias_init=initializers.inverse_softplus_step(),
            name="dt",
        )(swiglu.scale(x, self.scales[4]))
        dt = jnp.clip(jax.nn.softplus(dt), *self.step_range)
        convolve = short_convolution.ShortConvolution(
            self.conv_width, self.conv_bias, self.axis_name, name="conv"
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
            exchange=self.exchange,
        )
        y = self._gated(y.reshape(z.shape), z)
        y = nn.Dense(
            width,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=initializers.scaled(
                initializers.fan_in_uniform(inner), self.residual_scale
            ),
            name="out",
        )(y)
        return y, Mamba2State(conv, memory)

    def _gated(self, y: jax.Array, z: jax.Array) -> jax.Array:
        if self.norm == "none":
            return y * nn.silu(z)
        norm = norms.GatedRMSNorm(
            gate_first=self.norm == "gate_first",
            groups=self.norm_groups or self.groups,
            eps=self.eps,
            name="norm",
        )
        return norm(y, z)


@dataclasses.dataclass(unsafe_hash=True)
class Mamba2Options(mixer.Options):
    """Mamba-2 in a model's config.

    Attributes:
      expand: inner width over the model's width.
      head_dim: P; there are expand * width / head_dim heads.
      state_size: N.
      groups: G, groups of heads that share B and C.
      conv_width: tokens the short convolution sees.
      conv_bias: whether it has a bias.
      use_bias: whether the projections in and out have one.
      norm: rms(y * silu(z)), rms(y) * silu(z), or y * silu(z) for "none".
      norm_groups: groups of channels that are normalised apart; None for G.
      smallest_step: lower bound of the time step.
      largest_step: its upper bound; None for none.
      scales: factors on z, x, B, C and the step as they are projected.
    """

    shards_time: ClassVar[bool] = True

    expand: float = 2.0
    head_dim: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4
    conv_bias: bool = True
    use_bias: bool = False
    norm: Norm = "gate_first"
    norm_groups: int | None = None
    smallest_step: float = fields.bounded(0.0, 0.0)
    largest_step: float | None = None
    scales: tuple[float, ...] = (1.0,) * 5

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
        if inner % (self.norm_groups or self.groups):
            raise ValueError(
                f"{path}norm_groups must divide {path}expand * width, {inner},"
                f" got {self.norm_groups}"
            )
        numbers = [x for x in self.scales if type(x) in (int, float)]
        if not isinstance(self.scales, tuple) or len(numbers) != 5:
            raise ValueError(
                f"{path}scales must be a tuple of 5 numbers, for z, x, B, C "
                f"and the step, got {self.scales!r}"
            )
        if self.largest_step and self.largest_step < self.smallest_step:
            raise ValueError(
                f"{path}largest_step must be at least {path}smallest_step, "
                f"got {self.largest_step} and {self.smallest_step}"
            )

    def build(self, host: mixer.Host, **module: Any) -> Mamba2:
        """The layer."""
        return Mamba2(
            round(self.expand * host.width) // self.head_dim,
            self.head_dim,
            self.state_size,
            self.groups,
            self.conv_width,
            self.conv_bias,
            self.use_bias,
            self.norm,
            self.norm_groups,
            (self.smallest_step, self.largest_step or math.inf),
            self.scales,
            **self.common(host),
            **module,
        )
