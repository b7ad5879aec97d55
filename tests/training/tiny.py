"""A config file of a run that takes seconds; the text is given by the test."""

from seqjax import data
from seqjax import models
from seqjax.training import config as config_lib
from seqjax.training import optimizer


def get_config() -> config_lib.TrainConfig:
    return config_lib.TrainConfig(
        model=models.LanguageModelConfig(
            width=16,
            pattern=("simple_gla", "attention"),
            heads=2,
            mlp_width=32,
        ),
        data=data.DataConfig(
            source="files",
            path="TEXT",
            sequence_length=16,
            batch_size=8,
            validation_fraction=0.05,
        ),
        optimizer=optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        checkpoint=config_lib.CheckpointConfig(every=3, keep=2),
        steps=12,
        eval_every=5,
        progress_every=4,
    )
