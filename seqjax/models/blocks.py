"""What a repeat of the pattern is made of.

x = x + mixer(rms(x));  x = x + swiglu(rms(x))
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import layers
from seqjax.models import config as config_lib
from seqjax.models import mixers


class Block(nn.Module):
    """One layer: a mixer and an MLP, each after a norm and added back."""

    config: config_lib.LanguageModelConfig
    kind: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: Any,
        segment_ids: jax.Array | None,
        place: mixers.Place,
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Maps x [B, T, D] and the layer's state to the next ones."""
        config = self.config
        mixer = mixers.build(config, self.kind, name="mixer")
        if config.learned_initial_state:
            first = layers.InitialState(name="initial_state")
            state = first(mixer.init_state(x.shape[0], 1), state, place.fresh)
        y, state, shared = mixers.mix(
            config.options(self.kind),
            mixer,
            layers.RMSNorm(config.norm_eps, name="mixer_norm")(x),
            state,
            segment_ids,
            place,
        )
        x = x + y
        mlp = layers.SwiGLU(
            config.resolved_mlp_width,
            jnp.dtype(config.dtype),
            config.residual_scale,
            name="mlp",
        )
        x = x + mlp(layers.RMSNorm(config.norm_eps, name="mlp_norm")(x))
        return x, state, shared


class Repeat(nn.Module):
    """The layers of one repeat of the pattern."""

    config: config_lib.LanguageModelConfig

    @nn.compact
    def __call__(
        self,
        stream: tuple[jax.Array, dict[str, jax.Array]],
        states: tuple[Any, ...],
        rows: tuple[dict[str, jax.Array], ...],
        segment_ids: jax.Array | None,
        place: mixers.Place,
    ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], tuple[Any, ...]]:
        """Maps the stream and one state a layer to the next ones.

        Args:
          stream: x [B, T, D], and what layers leave for later ones.
          states: one a layer.
          rows: `Place.rows`, one a layer.
          segment_ids: int32 [B, T] or None.
          place: what all layers are told; without `rows` and `shared`.
        """
        block = Block
        if self.config.remat:
            block = nn.remat(Block, prevent_cse=False)
        x, shared = stream
        following = []
        for i, kind in enumerate(self.config.pattern):
            layer = block(self.config, kind, name=f"layer_{i}")
            own = place._replace(rows=rows[i], shared=shared)
            x, state, shared = layer(x, states[i], segment_ids, own)
            following.append(state)
        return (x, shared), tuple(following)
