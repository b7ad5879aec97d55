"""Bytes of the standard library: a 3:1 hybrid of simple GLA and attention.

Command:
    make train
  which is
    python -m experiments.train --config=experiments/configs/stdlib_bytes.py \\
        --workdir=runs/stdlib_bytes
Hardware: two CPU cores, 2 GB of memory; any JAX device will do.
Time: 2 min 22 s (188 s of processor time), of which compiling takes 20 s; a
  restart finds it compiled.
Metric: validation bits/byte: 2.161 (trigram 2.551, zlib 1.807), Python 3.11.
Text: the sources of the interpreter that runs it, so another Python version
gives slightly other numbers.
"""

from seqjax import data
from seqjax import models
from seqjax.training import config as config_lib
from seqjax.training import optimizer


def get_config() -> config_lib.TrainConfig:
    """0.94 million parameters, 0.6 million bytes read."""
    return config_lib.TrainConfig(
        model=models.LanguageModelConfig(
            vocab_size=256,
            width=128,
            pattern=("simple_gla",) * 3 + ("attention",),
            heads=2,
            dtype="auto",
        ),
        data=data.DataConfig(
            source="stdlib",
            sequence_length=128,
            batch_size=8,
            validation_fraction=0.02,
        ),
        optimizer=optimizer.OptimizerConfig(
            learning_rate=4e-3, warmup_steps=50, final_fraction=0.05
        ),
        checkpoint=config_lib.CheckpointConfig(every=200, keep=2),
        steps=600,
        eval_every=300,
        progress_every=40,
    )
