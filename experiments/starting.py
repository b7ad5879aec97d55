"""What a run starts from: random parameters, or another project's checkpoint.

With `init_from` the checkpoint's model takes the place of the config's, so that
everything that follows, the saved config included, speaks of that model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import interop
from seqjax import models
from seqjax.parallel import sharding
from seqjax.training import config as config_lib
from seqjax.training import flags
from seqjax.training import programs


def resolve(
    config: config_lib.TrainConfig,
) -> tuple[config_lib.TrainConfig, programs.InitialParams | None]:
    """The config with its model, and what gives the first parameters.

    Args:
      config: as parsed.

    Raises:
      ConfigError: a checkpoint that cannot be loaded, or does not fit the data.
    """
    if not config.init_from:
        return config, None
    try:
        folder = interop.folder(config.init_from)
        described = interop.describe(folder)
    except ValueError as error:
        raise flags.ConfigError(
            f"init_from={config.init_from}: {error}"
        ) from error
    model = dataclasses.replace(
        described,
        dtype=config.model.dtype,
        remat=config.model.remat,
        learned_initial_state=config.model.learned_initial_state,
    )
    config = dataclasses.replace(config, model=model)
    config.validate()

    def initial(
        mesh: jax.sharding.Mesh, rules: sharding.ShardingRules
    ) -> dict[str, Any]:
        """Its parameters in float32, each on its devices."""
        shown = jax.process_index() == 0
        _, params = interop.load(
            folder, dtype="float32", mesh=mesh, rules=rules, progress=shown
        )
        return with_first_states(params, model, mesh, rules)

    return config, initial


def with_first_states(
    params: dict[str, Any],
    model: models.LanguageModelConfig,
    mesh: jax.sharding.Mesh,
    rules: sharding.ShardingRules,
) -> dict[str, Any]:
    """Parameters with those that a checkpoint never has: states, at first 0."""
    if not model.learned_initial_state:
        return params
    known = {
        sharding.path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    abstract = models.abstract_parameters(model)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, placed: (
            known[sharding.path_name(path)]
            if sharding.path_name(path) in known
            else jnp.zeros(leaf.shape, leaf.dtype, device=placed)
        ),
        abstract,
        sharding.tree_shardings(abstract, mesh, rules),
    )
