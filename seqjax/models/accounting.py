"""What a model costs: parameters, state bytes, FLOPs; computed from shapes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.models import cache as cache_lib
from seqjax.models import config as config_lib
from seqjax.models import language_model
from seqjax.models import mixers

_DECAYED = ("kernel", "embedding", "unembedding", "weight")
# What a token is multiplied with; B and C are S5's.
_MATRICES = ("kernel", "weight", "mix_out_kernel", "B", "C")


def abstract_parameters(config: config_lib.LanguageModelConfig) -> Any:
    """The variables of `LanguageModel(config).init` as shapes and dtypes."""
    model = language_model.LanguageModel(config)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)


def parameter_count(params: Any) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def state_bytes(
    config: config_lib.LanguageModelConfig, capacity: int
) -> dict[str, int]:
    """Bytes of the state of one layer and one row, for each pattern name.

    Those of a shared block are apart, by the name "shared_block".

    Args:
      config: a valid config.
      capacity: tokens that softmax attention holds (at most window - 1 with a
        window); the other mixers do not depend on it.
    """
    sizes = {}

    def note(name: str, state: Any) -> None:
        sizes[name] = sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
        )

    def parts(place: int) -> cache_lib.LayerState:
        return cache_lib.split(
            jax.eval_shape(
                lambda: mixers.empty_state(config, place, 1, capacity)
            )
        )

    for kind in dict.fromkeys(config.pattern):
        note(kind, parts(config.pattern.index(kind))[:2])
    if config.shared_uses():
        place = config.shared_blocks.index(0)
        note("shared_block", parts(place).shared)
    return sizes


def flops_per_token(
    config: config_lib.LanguageModelConfig, length: int
) -> float:
    """FLOPs of training on one token, forward and backward (3 x forward).

    A multiply-add is two.  Projections, the output logits and what the mixers
    do with their states are counted, norms and gates are not, nor what remat
    computes again.

    Args:
      config: a valid config.
      length: T, tokens of a document, for softmax attention.
    """
    params = abstract_parameters(config)["params"]
    uses = {
        f"shared_{index}": count
        for index, count in config.shared_uses().items()
    }
    matrices = sum(
        math.prod(leaf.shape) * uses.get(path[0].key, 1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key in _MATRICES
    )
    matrices += config.vocab_size * config.width
    matrices -= config.repeats * sum(
        _idle(config, place) for place in range(len(config.pattern))
    )
    per_repeat = sum(
        config.options(kind).flops(config.host(kind), length)
        for kind in config.pattern
    )
    shared = sum(uses.values()) * config.shared_block.flops(
        config.host(config.pattern[0]), length
    )
    return 3 * (2.0 * matrices + config.repeats * per_repeat + shared)


def _idle(config: config_lib.LanguageModelConfig, place: int) -> int:
    """Numbers of the channel mixer's kernels that a token does not meet."""
    name = config.mlp(place)
    if name == "none":
        return 0
    host = config.host(config.pattern[place])
    return getattr(config, name).idle(host, config.resolved_mlp_width)


def weight_decay_mask(params: Any) -> Any:
    """True for the matrices that weight decay acts on, in the tree of params.

    Norm scales, biases, and Mamba-2's A_log, D and dt bias are left alone;
    shapes do not tell, since scanned layers have one axis more.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in _DECAYED, params
    )
