"""What a run executes on the devices, each compiled once, ahead of time.

A program compiled for given shapes refuses others, so that nothing is traced
twice behind the back of the loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import models
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from seqjax.training import config as config_lib
from seqjax.training import feeding
from seqjax.training import flags
from seqjax.training import optimizer as optimizer_lib
from seqjax.training import over_mesh
from seqjax.training import progress as progress_lib
from seqjax.training import state as state_lib
from seqjax.training import step as step_lib

_DTYPES = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}

# Parameters to start from, float32, given a mesh and its rules.
InitialParams = Callable[[jax.sharding.Mesh, sharding.ShardingRules], Any]


def platform_dtype() -> str:
    """What model.dtype "auto" means on the default backend."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class Programs:
    """The model on its mesh: initial state, train step, evaluation step."""

    def __init__(
        self,
        config: config_lib.TrainConfig,
        rules: sharding.ShardingRules,
    ):
        """Builds the mesh and the shapes; compiles nothing yet."""
        self._config, self._rules = config, rules
        self.mesh = mesh_lib.make_mesh(config.mesh)
        config.check_devices(sharding.batch_shards(self.mesh))
        self.model = models.LanguageModel(
            config.resolved_model(platform_dtype())
        )
        self._optimizer = optimizer_lib.make(config.optimizer)
        self._init = state_lib.make_init(
            self.model, self._optimizer, config.seed
        )
        self.abstract_state = state_lib.abstract(self._init, self.mesh, rules)
        try:
            optimizer_lib.check_trained(
                config.optimizer, self.abstract_state.params
            )
        except ValueError as error:
            raise flags.ConfigError(str(error)) from error
        # Without jit the compiler's own way is the faster one, by far.
        self._layout = None
        if not config.debug:
            self._layout = over_mesh.layout(
                self.mesh, config.mesh, self.abstract_state.params
            )
        shape = (config.data.batch_size, config.data.sequence_length)
        self.feed = feeding.feed(self.mesh, shape)
        self._abstract_batch = {
            key: jax.ShapeDtypeStruct(
                shape,
                _DTYPES.get(key, jnp.int32),
                sharding=self.feed.sharding,
            )
            for key in step_lib.KEYS
        }
        self._train_step: Callable[..., Any] | None = None
        self._eval_step: Callable[..., Any] | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return models.parameter_count(self.abstract_state.params)

    @property
    def flops_per_token(self) -> float:
        """Of training, forward and backward."""
        return models.flops_per_token(
            self.model.config, self._config.data.sequence_length
        )

    def put(self, batch: dict[str, np.ndarray]) -> step_lib.Batch:
        """This process's rows of a batch, as global arrays on the mesh."""
        return {key: self.feed.put(batch[key]) for key in step_lib.KEYS}

    def init(
        self,
        progress: progress_lib.Progress,
        stop: Callable[[], bool],
        initial: InitialParams | None = None,
    ) -> state_lib.TrainState:
        """The state of step 0, with parameters from `initial` if given."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        init, given, donated = self._init, (), ()
        if initial is not None:
            given, donated = (initial(self.mesh, self._rules),), 0

            def init(params: Any) -> state_lib.TrainState:
                return state_lib.from_params(params, self._optimizer)

        jitted = jax.jit(init, out_shardings=where, donate_argnums=donated)
        call = progress.compiling(
            "the initial state", lambda: jitted.lower(*given).compile(), stop
        )
        return call(*given)

    def prepare_train_step(
        self, progress: progress_lib.Progress, stop: Callable[[], bool]
    ) -> None:
        """Compiles the train step (unless debug runs it uncompiled)."""
        function = step_lib.make_train_step(
            self._model_across(), self._optimizer, self._config, self._layout
        )
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        self._train_step = self._compiled(
            "the train step",
            function,
            (self.abstract_state, self._abstract_batch),
            {
                "donate_argnums": 0,
                "out_shardings": (where, sharding.replicated(self.mesh)),
            },
            progress,
            stop,
        )

    def prepare_eval_step(
        self, progress: progress_lib.Progress, stop: Callable[[], bool]
    ) -> None:
        """Compiles the evaluation step, once."""
        if self._eval_step is not None:
            return
        self._eval_step = self._compiled(
            "the evaluation step",
            step_lib.make_eval_step(self._model_across(), self._layout),
            (self.abstract_state.params, self._abstract_batch),
            {"out_shardings": sharding.replicated(self.mesh)},
            progress,
            stop,
        )

    def train_step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """One update; donates the state."""
        assert self._train_step is not None
        return self._train_step(state, batch)

    def eval_step(self, params: Any, batch: Any) -> Any:
        """Sums of the loss and of the tokens of one batch."""
        assert self._eval_step is not None
        return self._eval_step(params, batch)

    def _model_across(self) -> models.LanguageModel:
        """The model as the steps call it: each device its part of it."""
        if self._layout is None:
            return self.model
        return models.LanguageModel(self.model.config, self._layout.across)

    def _compiled(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        progress: progress_lib.Progress,
        stop: Callable[[], bool],
    ) -> Callable[..., Any]:
        if self._config.debug:
            progress.say(f"debug: {name} runs without jit, with NaN checks")
            return _uncompiled(function)
        jitted = jax.jit(function, **options)
        return progress.compiling(
            name, lambda: jitted.lower(*arguments).compile(), stop
        )


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with jax.disable_jit(), jax.debug_nans(True):
            return function(*arguments)

    return call
