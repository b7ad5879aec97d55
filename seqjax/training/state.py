"""The train state: everything a step reads and writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from seqjax import models
from seqjax.parallel import sharding


class TrainState(NamedTuple):
    """A pytree of arrays; its keys are functions of the step, not carried.

    Attributes:
      step: int32 [], updates attempted so far.
      skipped: int32 [], those left out because they were not finite.
      params: the model's variables, float32.
      opt_state: the optimizer's.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: Any


def make_init(
    model: models.LanguageModel,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> Any:
    """A function without arguments that returns the state of step 0."""

    def init() -> TrainState:
        # Parameters do not depend on the length of the tokens they are
        # initialised with; a short row keeps this compile small.
        tokens = jnp.zeros((1, 8), jnp.int32)
        params = model.init(jax.random.key(seed), tokens)
        return from_params(params, optimizer)

    return init


def from_params(
    params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state of step 0 with these parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
    )


def abstract(
    init: Any, mesh: jax.sharding.Mesh, rules: sharding.ShardingRules
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(init)
    shardings = sharding.tree_shardings(shapes, mesh, rules)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        shardings,
    )
