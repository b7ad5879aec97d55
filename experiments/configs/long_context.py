"""Next byte over contexts that one device does not hold: T over all devices.

Three simple GLA layers to one of attention with a window: between devices move
one state a GLA layer, of a size independent of T, and a halo of the window.

Command, on simulated devices:
    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m experiments.train --workdir=runs/long_context \\
        --config=experiments/configs/long_context.py
  131,072 tokens a sequence, 16,384 a device; 4 steps of a tiny model, which
  show that it works and learn little.
Time: 50 s of compiling, then 12 s a step (10,600 tokens/s), on two free cores;
  175 s of processor time in all.
Metric: validation bits/byte: 6.914, Python 3.11; 8 before the first step.
Command, on 8 GPUs:
    python -m experiments.train --workdir=runs/long_context_gpu \\
        --config=experiments/configs/long_context.py:gpu
  1,048,576 tokens a sequence; --config.data.sequence_length=2097152 for twice
  that.  On more GPUs set mesh.seq to their number, or mesh.data and
  data.batch_size; on several machines see experiments/launch.
Hardware: two CPU cores and 6 GB of memory, of which it takes 5.5; or 8 GPUs,
  where it has not run yet.
Text: the standard library, as bytes; its files follow one another in a row, and
a document ends where its file does.
"""

from seqjax import data
from seqjax import layers
from seqjax import models
from seqjax.parallel import mesh
from seqjax.training import config as config_lib
from seqjax.training import optimizer

VARIANTS = ("cpu", "gpu")


def get_config(variant: str = "cpu") -> config_lib.TrainConfig:
    """The run on 8 simulated devices ("cpu") or 8 real ones ("gpu")."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    gpu = variant == "gpu"
    length = 2**20 if gpu else 2**17
    return config_lib.TrainConfig(
        model=models.LanguageModelConfig(
            vocab_size=256,
            width=1024 if gpu else 32,
            pattern=("simple_gla",) * 3 + ("attention",),
            repeats=3 if gpu else 1,
            heads=8 if gpu else 1,
            attention=layers.AttentionOptions(window=4096 if gpu else 128),
            remat=True,
            dtype="auto",
        ),
        data=data.DataConfig(
            source="stdlib",
            sequence_length=length,
            batch_size=1,
            validation_fraction=0.1,
            validation_tokens=length,
        ),
        optimizer=optimizer.OptimizerConfig(
            learning_rate=1e-3 if gpu else 1e-2,
            warmup_steps=20 if gpu else 1,
        ),
        mesh=mesh.MeshConfig(data=1, seq=8),
        checkpoint=config_lib.CheckpointConfig(every=100 if gpu else 4, keep=2),
        steps=1000 if gpu else 4,
        eval_every=200 if gpu else 4,
        progress_every=10 if gpu else 1,
    )
