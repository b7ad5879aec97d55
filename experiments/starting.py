"""What a run starts from: random parameters, or another project's checkpoint.

With `init_from` the checkpoint's model takes the place of the config's, so that
everything that follows, the saved config included, speaks of that model.
"""

import dataclasses
from typing import Any

import jax

from seqjax import interop
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
    if config.model.learned_initial_state:
        raise flags.ConfigError(
            "model.learned_initial_state must be False with init_from: the "
            "checkpoint holds no initial states"
        )
    try:
        folder = interop.folder(config.init_from)
        described = interop.describe(folder)
    except ValueError as error:
        raise flags.ConfigError(
            f"init_from={config.init_from}: {error}"
        ) from error
    model = dataclasses.replace(
        described, dtype=config.model.dtype, remat=config.model.remat
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
        return params

    return config, initial
