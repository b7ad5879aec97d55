"""Bytes of the standard library, 3:1 hybrid of simple GLA and attention."""

from seqjax import data
from seqjax import models
from seqjax.training import config as config_lib
from seqjax.training import optimizer


def get_config() -> config_lib.TrainConfig:
    """The configuration of ``make train``."""
    return config_lib.TrainConfig(
        model=models.LanguageModelConfig(
            vocab_size=256,
            width=128,
            pattern=("gla", "gla", "gla", "attention"),
            heads=2,
            dtype="auto",
        ),
        data=data.DataConfig(
            source="stdlib",
            sequence_length=256,
            batch_size=16,
            validation_fraction=0.02,
        ),
        optimizer=optimizer.OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50
        ),
        checkpoint=config_lib.CheckpointConfig(every=100),
        steps=400,
        eval_every=200,
    )
