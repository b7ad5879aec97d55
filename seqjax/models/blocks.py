"""What a repeat of the pattern is made of.

x = x + mixer(norm(x));  x = x + mlp(norm(x))

or as the config's `norm_places` and scales say.  Where a shared block stands
before a mixer, that reads norm(x + block(x)).
"""

from typing import Any

from flax import linen as nn
import jax

from seqjax import layers
from seqjax.models import across as across_lib
from seqjax.models import cache as cache_lib
from seqjax.models import config as config_lib
from seqjax.models import mixers


def norm(config: config_lib.LanguageModelConfig, **module: Any) -> nn.Module:
    """A norm of the residual stream; `module` is `name` or nothing."""
    if config.norm == "layer":
        return layers.LayerNorm(config.norm_eps, **module)
    zero_centred = config.norm == "zero_centred_rms"
    return layers.RMSNorm(config.norm_eps, zero_centred, **module)


class Block(nn.Module):
    """One layer: a mixer and an MLP, each with a norm and added back.

    Attributes:
      config: of the model.
      kind: its name in the pattern.
      place: its index in the pattern, which may decide on its MLP.
      across: how the model lies on a mesh; None for one device.
    """

    config: config_lib.LanguageModelConfig
    kind: str
    place: int = 0
    across: across_lib.Across | None = None

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
        where = config.norm_place(self.place)
        state, mlp_state, shared_state = cache_lib.split(state)
        mixer = mixers.build(config, self.kind, self.across, name="mixer")
        if config.learned_initial_state:
            first = layers.InitialState(name="initial_state")
            state = first(mixer.init_state(x.shape[0], 1), state, place.fresh)
        mixer_norm = norm(config, name="mixer_norm")
        block = mixers.build_shared(
            config, self.place, self.across, name="shared"
        )
        if block is None:
            x, inner = _enter(where, mixer_norm, x)
        else:
            y, shared_state = block(
                place.blocks[config.shared(self.place)],
                x,
                place.embedding,
                shared_state,
                segment_ids,
                place.positions if block.needs_positions else None,
            )
            # Only the mixer reads it: the stream stays as it is.
            _, inner = _enter(where, mixer_norm, x + y)
        y, state, shared = mixers.mix(
            config.options(self.kind), mixer, inner, state, segment_ids, place
        )
        x = _add(config, where, mixer_norm, x, y)
        mlp = mixers.build_mlp(config, self.place, self.across, name="mlp")
        if mlp is not None:
            mlp_norm = norm(config, name="mlp_norm")
            x, inner = _enter(where, mlp_norm, x)
            y, mlp_state = mlp(inner, mlp_state, segment_ids)
            x = _add(config, where, mlp_norm, x, y)
        return x, cache_lib.join(state, mlp_state, shared_state), shared


def _enter(
    where: str, normed: nn.Module, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The stream, and what a mixer or an MLP is given of it."""
    if where == "after":
        return x, x
    y = normed(x)
    return (y if where == "stream" else x), y


def _add(
    config: config_lib.LanguageModelConfig,
    where: str,
    normed: nn.Module,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """The stream with what came out added."""
    if where == "after":
        y = normed(y)
    if config.branch_scale != 1:
        y = config.branch_scale * y
    if config.stream_scale != 1:
        x = config.stream_scale * x
    return x + y


class Repeat(nn.Module):
    """The layers of one repeat of the pattern.

    Where time is sharded their states are dropped: they would be moved from the
    last device to all others for nothing.
    """

    config: config_lib.LanguageModelConfig
    across: across_lib.Across | None = None

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
        x, shared = stream
        following = []
        for i, kind in enumerate(self.config.pattern):
            name = f"layer_{i}"
            block = self._block(name)
            layer = block(self.config, kind, i, self.across, name=name)
            own = place._replace(rows=rows[i], shared=shared)
            x, state, shared = layer(x, states[i], segment_ids, own)
            following.append(state if self.across is None else None)
        return (x, shared), tuple(following)

    @nn.nowrap
    def _block(self, name: str) -> type[nn.Module]:
        """The class of a layer: what it gathers and what it keeps."""
        block, policy = Block, None
        if self.across is not None:
            block = self.across.layer(Block, name)
            policy = self.across.keeps
        if self.config.remat:
            return nn.remat(block, prevent_cse=False)
        if block is Block:
            return block
        return nn.remat(block, prevent_cse=False, policy=policy)
