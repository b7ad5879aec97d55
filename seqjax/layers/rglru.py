"""Griffin's recurrent block around the real-gated linear recurrent unit.

    r_t = sigmoid(W_a u),  i_t = sigmoid(W_x u),  log a_t = -8 r_t softplus(L)
    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * (i_t * u_t)
    y = W_o (h * gelu(W_y x)),   u = conv(W_u x)

De et al., arXiv 2402.19427.  W_a and W_x are block diagonal; the convolution
has a bias and no activation.  The first token of a document enters with factor
1 in place of the root, since it has no past to leave room for.  Decays start
with exp(-softplus(L)) uniform by area between the radii 0.9 and 0.999.  State
W*E numbers a row, cost O(E) a token beside the projections; a number a channel
holds no associations, which Griffin leaves to local attention.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import rotary
from seqjax.layers import short_convolution

_SHARPNESS = 8.0
# The root's slope is bounded as published: 1 - a^2 may round to nothing.
_MAX_SLOPE = 1000.0


class RGLRUState(NamedTuple):
    """conv [B, W-1, E] and memory [B, E]."""

    conv: jax.Array
    memory: jax.Array


class RGLRU(mixer.Mixer):
    """Griffin's recurrent block; gates and recurrence are float32.

    Attributes, beside those of every `Mixer`:
      inner: E, channels of the recurrence.
      blocks: of the gates' maps; a divisor of E.
      conv_width: W, tokens the convolution sees, the current one included.
    """

    inner: int
    blocks: int
    conv_width: int = 4

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> RGLRUState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        wide = norms.wide(self.dtype)
        return RGLRUState(
            jnp.zeros((batch, self.conv_width - 1, self.inner), wide),
            jnp.zeros((batch, self.inner), wide),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: RGLRUState | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, RGLRUState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], index of each token in its document; needed
            along with a state or axis_name.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        positions = rotary.positions_or_default(
            positions,
            segment_ids,
            x.shape[:2],
            continued=state is not None or self.axis_name is not None,
        )

        def dense(features: int, name: str, scale: float = 1.0) -> nn.Dense:
            init = nn.initializers.lecun_normal()
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=initializers.scaled(init, scale),
                name=name,
            )

        u, conv = short_convolution.ShortConvolution(
            self.conv_width,
            True,
            self.axis_name,
            activation=None,
            name="conv",
        )(
            dense(self.inner, "in")(x),
            None if state is None else state.conv,
            segment_ids,
        )
        wide = norms.wide(self.dtype)
        u = u.astype(wide)
        input_gate = BlockDense(self.blocks, name="input_gate")(u)
        decay_gate = BlockDense(self.blocks, name="decay_gate")(u)
        decay = self.param("decay", _ring, (self.inner,), jnp.float32)
        log_decay, written = gated_input(
            u, input_gate, decay_gate, decay.astype(wide), positions
        )
        h, memory = ops.linear_recurrence(
            written,
            log_decay,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        gate = nn.gelu(dense(self.inner, "gate")(x))
        y = dense(x.shape[-1], "out", self.residual_scale)(
            h.astype(self.dtype) * gate
        )
        return y, RGLRUState(conv, memory)


def gated_input(
    u: jax.Array,
    input_gate: jax.Array,
    decay_gate: jax.Array,
    decay: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What the recurrence is fed with, from gates before their sigmoid.

    Args:
      u: [B, T, E] float32 or float64.
      input_gate: [B, T, E].
      decay_gate: [B, T, E].
      decay: [E], before its softplus.
      positions: int32 [B, T]; at 0 nothing is scaled down.

    Returns:
      log_decay [B, T, E] and the input [B, T, E].
    """
    rate = _SHARPNESS * jax.nn.softplus(decay)
    log_decay = -jax.nn.sigmoid(decay_gate) * rate[None, None]
    room = _sqrt(-jnp.expm1(2 * log_decay))
    room = jnp.where((positions == 0)[..., None], 1, room)
    return log_decay, room * jax.nn.sigmoid(input_gate) * u


@jax.custom_jvp
def _sqrt(x):
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = _sqrt(x)
    return root, dx / jnp.maximum(2 * root, 1 / _MAX_SLOPE)


class BlockDense(nn.Module):
    """A block-diagonal linear map with bias, from x [..., E] to [..., E].

    Attributes:
      blocks: number of blocks, a divisor of E.
    """

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x; parameters kernel [blocks, E/blocks, E/blocks], bias [E]."""
        width = x.shape[-1]
        if width % self.blocks:
            raise ValueError(
                f"blocks must divide the width {width}, got {self.blocks}"
            )
        size = width // self.blocks
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(batch_axis=0),
            (self.blocks, size, size),
            jnp.float32,
        )
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        parts = x.reshape(*x.shape[:-1], self.blocks, size)
        y = jnp.einsum("...ni,nij->...nj", parts, kernel.astype(x.dtype))
        return y.reshape(x.shape) + norms.expand(bias.astype(x.dtype), x)


def _ring(key, shape, dtype, low=0.9, high=0.999):
    """softplus^-1(-log a) for a uniform by area between two radii."""
    area = jax.random.uniform(key, shape, dtype, low**2, high**2)
    rate = -0.5 * jnp.log(area)
    return jnp.log(jnp.expm1(rate))


@dataclasses.dataclass(unsafe_hash=True)
class RGLRUOptions(mixer.Options):
    """Griffin's recurrent block in a model's config.

    Attributes:
      expand: channels of the recurrence over the model's width; 4/3 in larger
        models of the paper.
      blocks: of the gates' maps; None for the model's number of heads.
      conv_width: tokens the short convolution sees.
    """

    shards_time: ClassVar[bool] = True

    expand: float = 1.0
    blocks: int | None = None
    conv_width: int = 4

    @property
    def needs(self) -> tuple[str, ...]:
        """Positions, by which a document's first token is known."""
        return ("positions",)

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        inner = mixer.expanded(f"{path}expand", self.expand, host.width)
        blocks = self.blocks or host.heads
        if inner % blocks:
            raise ValueError(
                f"{path}blocks must divide {path}expand * width, {inner}, got"
                f" {blocks}; set {path}blocks (by default the number of heads)"
            )

    def build(self, host: mixer.Host, **module: Any) -> RGLRU:
        """The layer."""
        return RGLRU(
            round(self.expand * host.width),
            self.blocks or host.heads,
            self.conv_width,
            **self.common(host),
            **module,
        )
