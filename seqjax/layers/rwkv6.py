"""RWKV-6 "Finch" time mixing: decays and mixtures that the token decides.

    x_i = x + d (mu_i + tanh((x + d mu_x) A) B_i),  d = shift(x) - x
    w = -exp(w_0 + tanh(x_w A_w) B_w),   r, k, v, g = W_i x_i
    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t
    S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T,   y = W_o (norm(o) * silu(g))

Peng et al., arXiv 2404.05892.  The state is read before it decays, the token
itself through a bonus u.  The norm is a layer norm of each head.  Mixtures,
decays and bonus start from the author's curves over channels and depth.  State
H*K*V + D numbers a row, cost O(K*V) per token and head; additive, so recall is
bounded by how little keys overlap.
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
from seqjax.layers import projections
from seqjax.layers import rwkv_init
from seqjax.layers import token_shift

_STREAMS = ("w", "k", "v", "r", "g")


class RWKV6State(NamedTuple):
    """shift [B, 1, D] and memory [B, H, K, V]."""

    shift: jax.Array
    memory: jax.Array


class RWKV6(mixer.Mixer):
    """RWKV-6 time mixing layer.

    Attributes, beside those of every `Mixer`:
      width: D, of the input.
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      mix_rank: inner width of the maps that mix a token with its predecessor.
      decay_rank: inner width of the map that makes the decay.
      group_eps: of the norm of each head.
      layer: index of this layer in its model, for the initial values.
      layers: number of layers of the model, for the initial values.
    """

    width: int
    heads: int
    key_dim: int
    value_dim: int
    mix_rank: int = 32
    decay_rank: int = 64
    group_eps: float = 64e-5
    layer: int = 0
    layers: int = 1

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> RWKV6State:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        memory = (batch, self.heads, self.key_dim, self.value_dim)
        return RWKV6State(
            token_shift.empty(batch, self.width, self.dtype),
            jnp.zeros(memory, norms.wide(self.dtype)),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: RWKV6State | None = None,
        segment_ids: jax.Array | None = None,
        layer: jax.Array | None = None,
    ) -> tuple[jax.Array, RWKV6State]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          layer: int32 [], in the place of the attribute where layers are
            scanned; it matters for the initial values alone.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """
        depth = rwkv_init.Depth(
            self.layer if layer is None else layer, self.layers
        )
        before, shift = token_shift.shift(
            x,
            None if state is None else state.shift,
            segment_ids,
            self.axis_name,
        )
        x = x.astype(self.dtype)
        mixed = self._mix(x, before.astype(self.dtype) - x, depth)

        def project(name: str, stream: str, features: int) -> jax.Array:
            return projections.to_heads(
                mixed[stream], self.heads, features, self.dtype, name
            )

        r = project("receptance", "r", self.key_dim)
        k = project("key", "k", self.key_dim)
        v = project("value", "v", self.value_dim)
        gate = project("gate", "g", self.value_dim)
        keys = (self.heads, self.key_dim)
        bonus = self.param("bonus", rwkv_init.bonus(depth), keys, jnp.float32)
        o, memory = ops.rwkv6(
            r,
            k,
            v,
            gates.exponential_decay(self._decay(mixed["w"], depth)),
            bonus.astype(norms.wide(self.dtype)),
            scale=1.0,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        o = norms.HeadLayerNorm(self.group_eps, name="norm")(o)
        y = projections.from_heads(
            o * nn.silu(gate), self.width, self.dtype, self.residual_scale
        )
        return y, RWKV6State(shift, memory)

    def _mix(
        self, x: jax.Array, delta: jax.Array, depth: rwkv_init.Depth
    ) -> dict[str, jax.Array]:
        """The five mixtures of a token and the one before."""
        curves = rwkv_init.rwkv6_mixtures(depth)

        def mu(name: str) -> jax.Array:
            value = self.param(
                f"mix_{name}", curves[name], (self.width,), jnp.float32
            )
            return norms.expand(value, x).astype(x.dtype)

        inner = nn.Dense(
            len(_STREAMS) * self.mix_rank,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="mix_in",
        )(x + delta * mu("x"))
        inner = jnp.tanh(inner).reshape(*x.shape[:2], len(_STREAMS), -1)
        outer = self.param(
            "mix_out_kernel",
            initializers.uniform(0.01),
            (len(_STREAMS), self.mix_rank, self.width),
            jnp.float32,
        )
        moved = jnp.einsum("btnr,nrd->nbtd", inner, outer.astype(self.dtype))
        return {
            name: x + delta * (mu(name) + moved[i])
            for i, name in enumerate(_STREAMS)
        }

    def _decay(self, x: jax.Array, depth: rwkv_init.Depth) -> jax.Array:
        """What the decay is made of, [B, T, H, K]."""
        inner = nn.Dense(
            self.decay_rank,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="decay_in",
        )(x)
        return nn.DenseGeneral(
            (self.heads, self.key_dim),
            dtype=norms.wide(self.dtype),
            kernel_init=initializers.uniform(0.01),
            bias_init=rwkv_init.rwkv6_decay(depth),
            name="decay",
        )(jnp.tanh(inner))


@dataclasses.dataclass(unsafe_hash=True)
class RWKV6Options(mixer.ExpandedOptions):
    """RWKV-6 in a model's config; the paper has head_dim 64.

    Attributes:
      mix_rank: inner width of the maps that mix a token with its predecessor.
      decay_rank: inner width of the map that makes the decay.
      group_eps: of the norm of each head.
    """

    shards_time: ClassVar[bool] = True

    mix_rank: int = 32
    decay_rank: int = 64
    group_eps: float = 64e-5

    @property
    def needs(self) -> tuple[str, ...]:
        """Its place in the depth."""
        return ("layer",)

    def build(self, host: mixer.Host, **module: Any) -> RWKV6:
        """The layer."""
        return RWKV6(
            host.width,
            *self.expanded_sizes(host),
            self.mix_rank,
            self.decay_rank,
            self.group_eps,
            layers=host.depth,
            **self.common(host),
            **module,
        )
