"""Linear attention with a choice of feature maps; Based is one of them.

    S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)
    o_t = S_t^T phi(q_t), and over z_t . phi(q_t) with `normalize`
    y = W_o rms(o), or W_o o without `output_norm`

Katharopoulos et al., arXiv 2006.16236; the maps are those of
`seqjax.ops.feature_maps`, for q and k apart where they have parameters.  Based
(arXiv 2402.18668) is the Taylor map, exp(q . k / sqrt(K)) to second order, on
16 channels of queries and keys, normalised; the paper puts such layers between
short convolutions and windows of softmax attention.  State H*F*(V + 1) numbers
a row with F the channels of phi, (K + 1)(K + 2) / 2 for Taylor, cost O(F*V) per
token and head; nothing is ever forgotten.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import projections
from seqjax.ops import feature_maps
from seqjax.recurrence import segments

Map = Literal[
    "identity", "elu", "relu", "taylor", "dpfp", "t2r", "hadamard", "hedgehog"
]
_PLAIN = {
    "identity": lambda x: x,
    "elu": feature_maps.elu_plus_one,
    "relu": feature_maps.relu,
    "taylor": feature_maps.taylor,
}
_DPFP_SHIFTS = 4


class FeatureMap(nn.Module):
    """A map of the last axis, with its parameters if it has any.

    Attributes:
      kind: name of the map.
    """

    kind: Map

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., K] to [..., F]."""
        size = x.shape[-1]
        if self.kind in _PLAIN:
            return _PLAIN[self.kind](x)
        if self.kind == "dpfp":
            return feature_maps.dpfp(x, nu=_DPFP_SHIFTS)

        def weight(name: str, init: nn.initializers.Initializer) -> jax.Array:
            return self.param(name, init, (size, size), jnp.float32)

        def bias(name: str) -> jax.Array:
            return self.param(name, nn.initializers.zeros, (size,), jnp.float32)

        lecun = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        if self.kind == "t2r":
            return feature_maps.t2r(x, weight("weight", lecun))
        if self.kind == "hedgehog":
            eye = weight("weight", lambda key, *a: jnp.eye(size))
            return feature_maps.hedgehog(x, eye, bias("bias"))
        return feature_maps.hadamard(
            x,
            weight("weight", lecun),
            bias("bias"),
            weight("second_weight", lecun),
            bias("second_bias"),
        )


class LinearAttentionState(NamedTuple):
    """memory [B, H, F, V], and normalizer [B, H, F] or None."""

    memory: jax.Array
    normalizer: jax.Array | None


class LinearAttention(mixer.Mixer):
    """Linear attention layer.

    Attributes, beside those of every `Mixer`:
      heads: H.
      key_dim: K, of a head.
      value_dim: V, of a head.
      feature_map: of queries and keys.
      tie_maps: whether they share the parameters of the map.
      normalize: whether the weights of all tokens sum to 1.
      output_norm: whether the output is normalised per head.
    """

    heads: int
    key_dim: int
    value_dim: int
    feature_map: Map = "hadamard"
    tie_maps: bool = False
    normalize: bool = False
    output_norm: bool = True

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> LinearAttentionState:
        """The state before any token; its size does not depend on capacity."""
        del capacity
        K = self.key_dim
        sizes = {
            "taylor": (K + 1) * (K + 2) // 2,
            "dpfp": 2 * K * _DPFP_SHIFTS,
            "hedgehog": 2 * K,
        }
        wide = norms.wide(self.dtype)
        keys = (batch, self.heads, sizes.get(self.feature_map, K))
        return LinearAttentionState(
            jnp.zeros((*keys, self.value_dim), wide),
            jnp.zeros(keys, wide) if self.normalize else None,
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: LinearAttentionState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, LinearAttentionState]:
        """Mixes tokens.

        Args:
          x: [B, T, D].
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.

        Returns:
          y [B, T, D] in `dtype`, and the state after the last real token.
        """

        def project(name: str, features: int) -> jax.Array:
            return projections.to_heads(
                x, self.heads, features, self.dtype, name
            )

        name = "feature_map" if self.tie_maps else "query_map"
        q_map = k_map = FeatureMap(self.feature_map, name=name)
        if not self.tie_maps:
            k_map = FeatureMap(self.feature_map, name="key_map")
        # Nothing at padding may reach the gradient of the maps.
        q, k = (
            segments.mask_padding(segment_ids, project(name, self.key_dim))
            for name in ("query", "key")
        )
        before = None
        if state is not None:
            before = tuple(state) if self.normalize else state.memory
        o, after = ops.linear_attention(
            q_map(q),
            k_map(k),
            project("value", self.value_dim),
            normalize=self.normalize,
            initial_state=before,
            segment_ids=segment_ids,
            axis_name=self.axis_name,
            exchange=self.exchange,
        )
        if self.output_norm:
            y = projections.read_out(self, o, x, gated=False)
        else:
            y = projections.from_heads(
                o, x.shape[-1], self.dtype, self.residual_scale
            )
        after = after if isinstance(after, tuple) else (after, None)
        return y, LinearAttentionState(*after)


@dataclasses.dataclass(unsafe_hash=True)
class LinearAttentionOptions(mixer.ExpandedOptions):
    """Linear attention in a model's config.

    Attributes:
      feature_map: of queries and keys.
      tie_maps: whether they share the parameters of the map.
      normalize: whether the weights of all tokens sum to 1; wants a positive
        map.
      output_norm: whether the output is normalised per head.
    """

    shards_time: ClassVar[bool] = True

    feature_map: Map = "hadamard"
    tie_maps: bool = False
    normalize: bool = False
    output_norm: bool = True

    def build(self, host: mixer.Host, **module: Any) -> LinearAttention:
        """The layer."""
        return LinearAttention(
            *self.expanded_sizes(host),
            self.feature_map,
            self.tie_maps,
            self.normalize,
            self.output_norm,
            **self.common(host),
            **module,
        )


@dataclasses.dataclass(unsafe_hash=True)
class BasedOptions(mixer.HeadOptions):
    """Based in a model's config; values have the width of a head.

    Attributes:
      feature_dim: channels of a head's queries and keys.
    """

    shards_time: ClassVar[bool] = True

    feature_dim: int = 16

    def build(self, host: mixer.Host, **module: Any) -> LinearAttention:
        """The layer."""
        heads, head_dim = self.sizes(host)
        return LinearAttention(
            heads,
            self.feature_dim,
            head_dim,
            "taylor",
            normalize=True,
            output_norm=False,
            **self.common(host),
            **module,
        )
