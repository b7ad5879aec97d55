"""AdamW with warm-up and cosine decay, clipped by the global norm.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019).  The
schedule is a function of the step alone, so that a resumed or skipped step
finds the same learning rate.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seqjax import models
from seqjax.parallel import sharding


@dataclasses.dataclass
class OptimizerConfig:
    """AdamW and its schedule; learning rates are those at the peak.

    ``train_only`` is a regular expression that is searched for in the paths of
    the parameters; the others stay as they are, bit for bit, and have no
    optimizer state.  "" trains all.  "initial_state" is state tuning, with
    ``model.learned_initial_state``.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    train_only: str = ""

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is taken."""
        for name in ("learning_rate", "eps", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"optimizer.{name} must be positive and finite, got "
                    f"{getattr(self, name)}"
                )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name} must be in [0, 1), got "
                    f"{getattr(self, name)}"
                )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"optimizer.final_fraction must be in [0, 1], got "
                f"{self.final_fraction}"
            )
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"optimizer.{name} must not be negative or infinite, got "
                    f"{getattr(self, name)}"
                )
        try:
            re.compile(self.train_only)
        except re.error as error:
            raise ValueError(
                f"optimizer.train_only must be a regular expression or empty, "
                f"got {self.train_only!r}: {error}"
            ) from error


def trained(config: OptimizerConfig, params: Any) -> Any:
    """True for the leaves of params that are trained, in the same tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(
            re.search(config.train_only, sharding.path_name(path))
        ),
        params,
    )


def check_trained(config: OptimizerConfig, params: Any) -> None:
    """Raises ValueError where ``train_only`` names no parameter."""
    if not any(jax.tree.leaves(trained(config, params))):
        paths = jax.tree_util.tree_leaves_with_path(params)
        raise ValueError(
            f"optimizer.train_only={config.train_only!r} matches no parameter;"
            f" paths look like {sharding.path_name(paths[0][0])} and"
            f" {sharding.path_name(paths[-1][0])}, and initial states have"
            f" some where model.learned_initial_state is true"
        )


def freeze(config: OptimizerConfig, params: Any) -> Any:
    """The parameters, without a gradient where they are not trained."""
    return jax.tree.map(
        lambda leaf, is_trained: (
            leaf if is_trained else jax.lax.stop_gradient(leaf)
        ),
        params,
        trained(config, params),
    )


def learning_rate(
    config: OptimizerConfig, step: jax.Array | int, steps: int
) -> jax.Array:
    """The rate of update ``step`` (from 0) in a run of ``steps`` updates.

    Linear from 0 (exclusive) to the peak over the warm-up, then a cosine to
    ``final_fraction`` of the peak at the last update.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = float(config.warmup_steps)
    rise = (step + 1.0) / max(warmup, 1.0)
    done = (step - warmup) / max(steps - 1.0 - warmup, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
    fall = config.final_fraction + (1.0 - config.final_fraction) * cosine
    return config.learning_rate * jnp.where(step < warmup, rise, fall)


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam moments and decoupled decay, without the learning rate.

    Decay leaves out norms, biases and decay rates.  The train step multiplies
    the result by minus ``learning_rate`` of its own step counter.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(
            config.weight_decay, mask=models.weight_decay_mask
        ),
    )
    if not config.train_only:
        return adamw
    return optax.multi_transform(
        {True: adamw, False: optax.set_to_zero()},
        lambda params: trained(config, params),
    )
