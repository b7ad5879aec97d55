"""The mixers of a model: made from its config, called with what they need.

docs/layers.md lists them all with paper, state and cost; each file of
`seqjax.layers` gives its equations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import layers
from seqjax.layers import gates
from seqjax.layers import mixer as mixer_lib
from seqjax.models import across as across_lib
from seqjax.models import cache as cache_lib
from seqjax.models import config as config_lib


class Place(NamedTuple):
    """What a layer may be told beside its input, state and segment ids.

    Attributes:
      positions: int32 [B, T], index of each token in its document.
      fresh: bool [B], rows that no token has reached yet; None where all are.
      rows: what belongs to this layer alone, by the name of the argument:
        "layer" and "ordinal", int32 [], and rows of the tables.
      shared: what earlier layers left for later ones.
      embedding: [B, T, D], the stream before the first layer, where shared
        blocks read it.
      blocks: the weights of the shared blocks, a tree each.
    """

    positions: jax.Array
    fresh: jax.Array | None = None
    rows: Any = None
    shared: Any = None
    embedding: Any = None
    blocks: Any = ()


def build(
    config: config_lib.LanguageModelConfig,
    kind: str,
    across: across_lib.Across | None = None,
    **module: Any,
) -> mixer_lib.Mixer:
    """The mixer that `kind` names.

    Args:
      config: a valid config.
      kind: a name that its pattern accepts.
      across: how the model lies on a mesh; None for one device.
      **module: `name` or `parent`, as every Flax module takes them.
    """
    return config.options(kind).build(_host(config, kind, across), **module)


def _host(
    config: config_lib.LanguageModelConfig,
    kind: str,
    across: across_lib.Across | None,
) -> mixer_lib.Host:
    host = config.host(kind)
    return host if across is None else across.host(host)


def build_mlp(
    config: config_lib.LanguageModelConfig,
    place: int,
    across: across_lib.Across | None = None,
    **module: Any,
) -> Any:
    """The channel mixer at a place of the pattern, or None."""
    name = config.mlp(place)
    if name == "none":
        return None
    host = _host(config, config.pattern[place], across)
    options = getattr(config, name)
    return options.build(host, config.resolved_mlp_width, **module)


def build_shared(
    config: config_lib.LanguageModelConfig,
    place: int,
    across: across_lib.Across | None = None,
    **module: Any,
) -> layers.SharedBlock | None:
    """The use of a shared block at a place of the pattern, or None."""
    if config.shared(place) is None:
        return None
    host = _host(config, config.pattern[place], across)
    return config.shared_block.build(host, config.resolved_mlp_width, **module)


def empty_state(
    config: config_lib.LanguageModelConfig,
    place: int,
    batch: int,
    capacity: int,
) -> Any:
    """State before any token of the layer at a place of the pattern."""
    mixer = build(config, config.pattern[place], parent=None)
    mlp = build_mlp(config, place, parent=None)
    shared = build_shared(config, place, parent=None)
    return cache_lib.join(
        mixer.init_state(batch, capacity),
        None if mlp is None else mlp.init_state(batch),
        None if shared is None else shared.init_state(batch, capacity),
    )


def rows(
    config: config_lib.LanguageModelConfig,
    lower_bounds: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], ...]:
    """For each place of the pattern its `Place.rows`, repeats stacked.

    Args:
      config: a valid config.
      lower_bounds: for each mixer that has them its learned table
        [depth, channels].

    Returns:
      What each layer needs, each leaf [repeats, ...].
    """
    size = len(config.pattern)
    depth = jnp.arange(config.depth, dtype=jnp.int32)
    found = []
    for place, kind in enumerate(config.pattern):
        options = config.options(kind)
        ordinal = depth // size * config.pattern.count(kind)
        tables = {
            "layer": depth,
            "ordinal": ordinal + config.pattern[:place].count(kind),
            **options.tables(config.host(kind)),
        }
        if kind in lower_bounds:
            tables["lower_bound"] = gates.lower_bounds(lower_bounds[kind])
        found.append(
            {
                name: table[place::size]
                for name, table in tables.items()
                if name in options.needs
            }
        )
    return tuple(found)


def mix(
    options: mixer_lib.Options,
    mixer: mixer_lib.Mixer,
    x: jax.Array,
    state: Any,
    segment_ids: jax.Array | None,
    place: Place,
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """Calls a mixer with those of the arguments that it needs.

    Returns:
      y, the state, and `place.shared` with what this layer leaves in it.
    """
    known = {**place.rows, **place.shared, "positions": place.positions}
    needed = {name: known[name] for name in options.needs}
    result = mixer(x, state, segment_ids, **needed)
    y, state = result[:2]
    return y, state, {**place.shared, **(result[2] if result[2:] else {})}


def shared(
    config: config_lib.LanguageModelConfig, shape: tuple[int, ...]
) -> dict[str, jax.Array]:
    """`Place.shared` before the first layer, for tokens of shape (B, T)."""
    widths = {}
    for kind in dict.fromkeys(config.pattern):
        widths |= config.options(kind).leaves(config.host(kind))
    return {
        name: jnp.zeros((*shape, width), config.dtype)
        for name, width in widths.items()
    }


def lower_bound_channels(
    config: config_lib.LanguageModelConfig,
) -> dict[str, int]:
    """Channels of the learned lower bounds of each mixer that has them."""
    channels = {
        kind: config.options(kind).lower_bound(config.host(kind))
        for kind in dict.fromkeys(config.pattern)
    }
    return {kind: size for kind, size in channels.items() if size is not None}
