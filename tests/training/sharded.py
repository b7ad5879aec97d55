"""A tiny model's train step on any mesh, and its batches."""

import math

import jax
import numpy as np

from seqjax import data
from seqjax import layers
from seqjax import models
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from seqjax.training import config as config_lib
from seqjax.training import feeding
from seqjax.training import optimizer as optimizer_lib
from seqjax.training import over_mesh
from seqjax.training import state as state_lib
from seqjax.training import step as step_lib

B, T, VOCAB = 4, 2048, 29
AUTO = (jax.sharding.AxisType.Auto,) * 3


def get_config(pattern, mesh=(1, 1, 1), **changes):
    """A TrainConfig; `mesh` as MeshConfig, `changes` are of its model."""
    model = models.LanguageModelConfig(
        **{
            "vocab_size": VOCAB,
            "width": 16,
            "pattern": pattern,
            "heads": 2,
            "mlp_width": 24,
            "mamba": layers.MambaOptions(state_size=4, step_rank=2),
            "mamba2": layers.Mamba2Options(head_dim=8, state_size=4, groups=2),
            "mamba2_attention": layers.Mamba2AttentionOptions(
                mamba2=layers.Mamba2Options(head_dim=8, state_size=4)
            ),
            "based": layers.BasedOptions(feature_dim=3),
            **changes,
        }
    )
    return config_lib.TrainConfig(
        model=model,
        data=data.DataConfig(
            source="files", path="TEXT", sequence_length=T, batch_size=B
        ),
        optimizer=optimizer_lib.OptimizerConfig(
            learning_rate=1e-2, warmup_steps=1, clip_norm=0.5
        ),
        mesh=mesh_lib.MeshConfig(*mesh),
        steps=10,
    )


def make_mesh(sizes):
    """A mesh of the first devices."""
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, mesh_lib.AXES, axis_types=AUTO, devices=devices)


def make_batch(seed, shape=(B, T)):
    """Packed documents of any length, with padding, weights 0 and an empty row.

    Targets are what the model can learn: the token before.
    """
    rng = np.random.default_rng(seed)
    rows, length = shape
    inputs = rng.integers(VOCAB, size=shape, dtype=np.int32)
    ids = np.cumsum(rng.random(shape) < 6 / length, axis=1, dtype=np.int32)
    ids[0, -length // 3 :] = -1  # longer than a shard of 8
    ids[rows - 1, length // 2 : length // 2 + 5] = -1
    ids[1] = -1
    targets = np.roll(inputs, 1, axis=1)
    weights = (ids >= 0) & (rng.random(shape) < 0.8)
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": weights.astype(np.float32),
        "segment_ids": ids,
    }


class Run:
    """A compiled train step with its state; `mesh` needs all sizes."""

    def __init__(self, config):
        self.mesh = make_mesh(
            (config.mesh.data, config.mesh.fsdp, config.mesh.seq)
        )
        self.config = config
        model = models.LanguageModel(config.model)
        optimizer = optimizer_lib.make(config.optimizer)
        init = state_lib.make_init(model, optimizer, 0)
        rules = sharding.ShardingRules(min_size=64)
        self.abstract = state_lib.abstract(init, self.mesh, rules)
        self.layout = over_mesh.layout(
            self.mesh, config.mesh, self.abstract.params
        )
        across = None if self.layout is None else self.layout.across
        self.model = models.LanguageModel(config.model, across)
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        self.feed = feeding.feed(self.mesh, (B, T))
        self.state = jax.device_put(init(), where)
        step = jax.jit(
            step_lib.make_train_step(
                self.model, optimizer, config, self.layout
            ),
            out_shardings=(where, sharding.replicated(self.mesh)),
        )
        batch = self.put(make_batch(0))
        self.step = step.lower(self.abstract, batch).compile()

    def put(self, batch):
        return {key: self.feed.put(leaf) for key, leaf in batch.items()}

    def train(self, steps):
        """Metrics of each step, and the parameters after them."""
        state, found = self.state, []
        for seed in range(steps):
            state, metrics = self.step(state, self.put(make_batch(seed)))
            found.append(jax.device_get(metrics))
        return found, jax.device_get(state.params)

    def evaluate(self):
        """Sums of the first batch, of the first parameters."""
        step = jax.jit(step_lib.make_eval_step(self.model, self.layout))
        return step(self.state.params, self.put(make_batch(0)))
