"""RWKV-7 "Goose" time mixing: a state that is edited along learned directions.

    S_t = (diag(exp(w_t)) - k'_t (a_t * k'_t)^T) S_{t-1} + k_t v_t^T
    o_t = S_t^T r_t,   y = W_o ((norm(o_t) + (r_t . (rho k_t)) v_t) * g_t)
    w = -exp(-1/2) sigmoid(w_0 + tanh(x_w A) B),   k' = kappa k / |kappa k|

Peng et al., arXiv 2503.14456.  S decays per channel, what it holds along k' is
removed by a rate a in (0, 1), and k v^T is written, k shortened by a.  Values
are mixed with those of the first such layer of the model.  The norm is a layer
norm of each head.  State H*K*V + D numbers a row, cost O(K*V) per token and
head, twice that of an additive rule.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import gates
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.layers import rwkv_init
from seqjax.layers import token_shift


class RWKV7State(NamedTuple):
    """shift [B, 1, D] and memory [B, H, K, V]."""

    shift: jax.Array
    memory: jax.Array


class Ranks(NamedTuple):
    """Inner widths: of decay, rate a, mixture of values, output gate."""

    decay: int = 64
    rate: int = 64
    mixture: int = 32
    gate: int = 128


class RWKV7(mixer.Mixer):
    """RWKV-7 time mixing layer.

    Attributes, beside those of every `Mixer`:
      width: D, of the input.
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      ranks: inner widths of the low rank maps.
      value_residual: whether values are mixed with those of an earlier layer.
      group_eps: of the norm of each head.
      layer: index of this layer in its model, for the initial values.
      layers: number of layers of the model, for the initial values.
    """

    width: int
    heads: int
    key_dim: int
    value_dim: int
    ranks: Ranks = Ranks()
    value_residual: bool = False
    group_eps: float = 64e-5
    layer: int = 0
    layers: int = 1

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> RWKV7State:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        memory = (batch, self.heads, self.key_dim, self.value_dim)
        return RWKV7State(
            token_shift.empty(batch, self.width, self.dtype),
            jnp.zeros(memory, norms.wide(self.dtype)),
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: RWKV7State | None = None,
        segment_ids: jax.Array | None = None,
        layer: jax.Array | None = None,
        ordinal: jax.Array | None = None,
        first_value: jax.Array | None = None,
    ) -> tuple[Any, ...]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          layer: int32 [], in the place of the attribute where layers are
            scanned; it matters for the initial values alone.
          ordinal: int32 [], index among the layers of this kind; needed with
            value_residual, as is
          first_value: [B, T, H * V], values of the layer of ordinal 0; what it
            holds in that layer itself does not matter.

        Returns:
          y [B, T, D] in `dtype`, the state after the last real token, and with
          value_residual {"first_value": ...} for the layers to come.
        """
        depth = rwkv_init.Depth(
            self.layer if layer is None else layer, self.layers
        )
        x, wide = x.astype(self.dtype), norms.wide(self.dtype)
        before, shift = token_shift.shift(
            x,
            None if state is None else state.shift,
            segment_ids,
            self.axis_name,
        )
        delta, curves = before - x, rwkv_init.rwkv7_mixtures(depth)

        def mixed(name: str) -> jax.Array:
            mu = self.param(
                f"mix_{name}", curves[name], (self.width,), jnp.float32
            )
            return x + delta * norms.expand(mu, x).astype(x.dtype)

        def project(x: jax.Array, features: int, name: str, gain: float):
            init = nn.initializers.orthogonal(gain)
            return projections.to_heads(
                x, self.heads, features, self.dtype, name, init
            )

        r = project(mixed("r"), self.key_dim, "receptance", 1.0)
        k = project(mixed("k"), self.key_dim, "key", 0.1)
        value_input, left = mixed("v"), ()
        v = project(value_input, self.value_dim, "value", 1.0)
        if self.value_residual:
            v, left = self._residual(v, value_input, ordinal, first_value)
        log_decay = gates.bounded_decay(
            self._low_rank(
                mixed("w"),
                "decay",
                self.key_dim,
                rwkv_init.rwkv7_decay(depth, self.key_dim),
                jnp.tanh,
            )
        )
        rate = self._low_rank(
            mixed("a"),
            "rate",
            self.key_dim,
            rwkv_init.rwkv7_rate(self.key_dim),
        )
        rate = nn.sigmoid(rate)

        def per_key(name: str, init: nn.initializers.Initializer) -> jax.Array:
            shape = (self.heads, self.key_dim)
            value = self.param(name, init, shape, jnp.float32)
            return value.astype(wide)[None, None]

        k = k.astype(wide)
        direction = norms.l2_normalize(
            k * per_key("key_scale", rwkv_init.line(0.71, -0.1)), 1e-12
        )
        one = nn.initializers.constant(1.02)
        k = k * (1 + (rate - 1) * per_key("key_rate", one))
        o, memory = ops.dplr_delta_rule(
            r,
            k.astype(self.dtype),
            v,
            -direction.astype(self.dtype),
            (direction * rate).astype(self.dtype),
            log_decay,
            scale=1.0,
            initial_state=None if state is None else state.memory,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        o = norms.HeadLayerNorm(self.group_eps, name="norm")(o)
        bonus = per_key("bonus", nn.initializers.constant(-0.04))
        own = jnp.sum(r.astype(wide) * k * bonus, axis=-1, keepdims=True)
        o = o + own.astype(self.dtype) * v
        gate = self._low_rank(
            mixed("g"), "gate", self.value_dim, None, nn.sigmoid
        )
        y = projections.from_heads(
            o * gate.astype(self.dtype),
            self.width,
            self.dtype,
            1.0,
            nn.initializers.zeros,
        )
        return y, RWKV7State(shift, memory), *left

    def _low_rank(
        self,
        x: jax.Array,
        name: str,
        features: int,
        bias_init: nn.initializers.Initializer | None,
        activation=lambda x: x,
    ) -> jax.Array:
        """A low rank map to [B, T, H, features], float32."""
        rank = getattr(self.ranks, name)
        inner = nn.Dense(
            rank,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name=f"{name}_in",
        )(x)
        return nn.DenseGeneral(
            (self.heads, features),
            use_bias=bias_init is not None,
            dtype=norms.wide(self.dtype),
            kernel_init=nn.initializers.orthogonal(0.1),
            bias_init=bias_init or nn.initializers.zeros,
            name=name,
        )(activation(inner))

    def _residual(
        self,
        v: jax.Array,
        x: jax.Array,
        ordinal: jax.Array | None,
        first_value: jax.Array | None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array]]]:
        """Values mixed with those of the first layer, and the latter."""
        if ordinal is None or first_value is None:
            raise ValueError(
                "ordinal and first_value must be given with value_residual, "
                "got None; a layer on its own has value_residual=False"
            )
        bias = rwkv_init.line(0.73, -0.4)
        mixture = nn.sigmoid(self._low_rank(x, "mixture", self.value_dim, bias))
        first = ordinal == 0
        earlier = jnp.where(first, v, first_value.reshape(v.shape))
        mixed = v + (earlier - v) * mixture.astype(v.dtype)
        left = earlier.reshape(first_value.shape).astype(first_value.dtype)
        return jnp.where(first, v, mixed), ({"first_value": left},)


@dataclasses.dataclass(unsafe_hash=True)
class RWKV7Options(mixer.ExpandedOptions):
    """RWKV-7 in a model's config; the paper has head_dim 64.

    Attributes:
      decay_rank: inner width of the map that makes the decay.
      rate_rank: inner width of the map that makes the rate of removal.
      value_rank: inner width of the map that mixes in the first values.
      gate_rank: inner width of the map that makes the output gate.
      group_eps: of the norm of each head.
    """

    shards_time: ClassVar[bool] = True

    # Decay 1, read along k' 2, remove 2, write 2, read 2.
    flops_per_state: ClassVar[float] = 9.0

    decay_rank: int = 64
    rate_rank: int = 64
    value_rank: int = 32
    gate_rank: int = 128
    group_eps: float = 64e-5

    @property
    def needs(self) -> tuple[str, ...]:
        """Its place in the depth, and the values of the first such layer."""
        return ("layer", "ordinal", "first_value")

    def leaves(self, host: mixer.Host) -> dict[str, int]:
        """The values of the first such layer."""
        heads, _, value_dim = self.expanded_sizes(host)
        return {"first_value": heads * value_dim}

    def build(self, host: mixer.Host, **module: Any) -> RWKV7:
        """The layer."""
        return RWKV7(
            host.width,
            *self.expanded_sizes(host),
            Ranks(
                self.decay_rank,
                self.rate_rank,
                self.value_rank,
                self.gate_rank,
            ),
            host.layers_of_kind > 1,
            self.group_eps,
            layers=host.depth,
            **self.common(host),
            **module,
        )
