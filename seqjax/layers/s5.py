"""S5: one state space with many inputs and outputs, diagonal and complex.

    h_t = exp(L s) * h_{t-1} + (exp(L s) - 1) / L * (B u_t)
    o_t = 2 Re(C h_t) + D u_t
    y = W_1 gelu(o) * sigmoid(W_2 gelu(o))

Smith et al., arXiv 2208.04933, discretised by zero-order hold.  L [P] are the
modes of HiPPO-LegS in J blocks, one of each conjugate pair, and B and C are
random matrices in its eigenbasis (`seqjax.layers.hippo`); the steps s [P] are
log-uniform.  The real part of L is kept below -1e-4.  Nothing depends on the
token but the input: a linear, time-invariant map, weak where content decides
what is kept.  State 2 P = N numbers a row, cost O(D N) a token.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops
from seqjax.layers import hippo
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms

_LARGEST_RATE = -1e-4


class S5State(NamedTuple):
    """memory [B, P], complex."""

    memory: jax.Array


class S5(mixer.Mixer):
    """S5 layer; the state space is float32 and complex64.

    Attributes, beside those of every `Mixer`:
      state_size: N, real numbers of the state, a multiple of 2 * blocks.
      blocks: J, blocks of the first state matrix.
      step_range: of the first time steps.
    """

    state_size: int
    blocks: int = 1
    step_range: tuple[float, float] = (1e-3, 1e-1)

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> S5State:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        dtype = jnp.result_type(norms.wide(self.dtype), jnp.complex64)
        return S5State(jnp.zeros((batch, self.state_size // 2), dtype))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: S5State | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, S5State]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        width, wide = x.shape[-1], norms.wide(self.dtype)
        modes = hippo.legs_modes(self.state_size, self.blocks)
        count = self.state_size // 2

        def parameter(name: str, init: Any, *shape: int) -> jax.Array:
            return self.param(name, init, shape, jnp.float32).astype(wide)

        rate = parameter("rate", _constant(np.real(modes.eigenvalues)), count)
        turn = parameter(
            "frequency", _constant(np.imag(modes.eigenvalues)), count
        )
        low, high = (math.log(step) for step in self.step_range)
        step = jnp.exp(parameter("log_step", _between(low, high), count))
        into = _in_basis(modes.inverse.T, 1 / math.sqrt(width))
        B = parameter("B", into, width, count, 2)
        out_of = _in_basis(modes.basis, 1 / math.sqrt(self.state_size))
        C = parameter("C", lambda *a: _swap(out_of, *a), count, width, 2)
        D = parameter("D", nn.initializers.normal(1.0), width)

        eigenvalues = jax.lax.complex(jnp.minimum(rate, _LARGEST_RATE), turn)
        log_decay = eigenvalues * step
        held = jnp.expm1(log_decay) / eigenvalues
        u = x.astype(wide)
        written = jax.lax.complex(*(u @ B[..., i] for i in (0, 1)))
        h, memory = ops.linear_recurrence(
            written * held[None, None],
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        o = 2 * (h.real @ C[..., 0] - h.imag @ C[..., 1])
        o = nn.gelu(o + D[None, None] * u).astype(self.dtype)

        def dense(name: str, scale: float) -> jax.Array:
            init = initializers.scaled(nn.initializers.lecun_normal(), scale)
            return nn.Dense(
                width, dtype=self.dtype, kernel_init=init, name=name
            )(o)

        y = dense("out", self.residual_scale) * nn.sigmoid(dense("gate", 1.0))
        return y, S5State(memory)


def _constant(value):
    def init(key, shape, dtype):
        del key
        return jnp.asarray(np.broadcast_to(value, shape), dtype)

    return init


def _between(low, high):
    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


def _in_basis(basis, deviation):
    """Random real rows [D, N] times a complex basis [N, P]: [D, P, 2]."""

    def init(key, shape, dtype):
        rows = deviation * jax.random.normal(key, (shape[0], len(basis)), dtype)
        parts = (
            jnp.asarray(part, dtype)
            for part in (np.real(basis), np.imag(basis))
        )
        return jnp.stack([rows @ part for part in parts], axis=-1)

    return init


def _swap(init, key, shape, dtype):
    return jnp.swapaxes(init(key, (shape[1], shape[0], 2), dtype), 0, 1)


@dataclasses.dataclass(unsafe_hash=True)
class S5Options(mixer.Options):
    """S5 in a model's config.

    Attributes:
      state_size: N; None for the model's width.
      blocks: J, blocks of the first state matrix.
    """

    shards_time: ClassVar[bool] = True

    state_size: int | None = None
    blocks: int = 1

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        size = self.state_size or host.width
        if size % (2 * self.blocks):
            raise ValueError(
                f"{path}state_size must be a multiple of 2 * {path}blocks, got"
                f" {size} and {path}blocks={self.blocks}; set {path}state_size"
                " (by default the width)"
            )

    def build(self, host: mixer.Host, **module: Any) -> S5:
        """The layer."""
        return S5(
            self.state_size or host.width,
            self.blocks,
            **self.common(host),
            **module,
        )
