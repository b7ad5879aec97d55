"""The parts of a run, put together and checked before the first step."""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import jax

from seqjax import data
from seqjax.parallel import sharding
from seqjax.training import checkpoints
from seqjax.training import config as config_lib
from seqjax.training import flags
from seqjax.training import programs
from seqjax.training import progress as progress_lib
from seqjax.training import provenance
from seqjax.training import workdir


class Parts(NamedTuple):
    """What a run works with.

    Attributes:
      corpus: the text, split.
      train_data: endless batches of this process, with a position.
      validation_data: finite batches of this process.
      programs: the model on its mesh.
      store: the checkpoints.
      provenance: versions, commit, devices.
    """

    corpus: data.Corpus
    train_data: data.TrainIterator
    validation_data: data.ValidationBatches
    programs: programs.Programs
    store: checkpoints.CheckpointStore
    provenance: dict[str, Any]

    def describe(self, step: int) -> str:
        """What is about to run, after ``step`` updates."""
        facts = self.provenance
        return (
            f"{f'resuming after step {step}' if step else 'starting'}: "
            f"{self.programs.parameters:,} parameters, {facts['devices']}, "
            f"mesh {facts['mesh']}, {self.corpus.train.tokens:,} tokens to "
            f"train on, {self.corpus.validation.tokens:,} to validate"
        )

    def progress(
        self, config: config_lib.TrainConfig, say: Callable[[str], None]
    ) -> progress_lib.Progress:
        """The lines that the run prints, through ``say``."""
        batch, length = config.data.batch_size, config.data.sequence_length
        return progress_lib.Progress(
            steps=config.steps,
            every=config.progress_every,
            tokens_per_step=batch * length,
            flops_per_token=self.programs.flops_per_token,
            say=say,
        )


def assemble(
    config: config_lib.TrainConfig,
    directory: pathlib.Path,
    rules: sharding.ShardingRules,
) -> Parts:
    """Reads the text, builds the programs, opens and binds the workdir.

    Raises:
      DataError: text that is missing, unreadable, empty or too short.
      ConfigError: a batch that the devices do not divide, a mesh that does
        not fit them, or a workdir of another configuration.
    """
    shard = (jax.process_index(), jax.process_count())
    corpus = data.corpus(config.data)
    train_data = data.make_train_iterator(config.data, *shard, corpus=corpus)
    validation_data = data.make_validation_batches(
        config.data, *shard, corpus=corpus
    )
    try:
        config.mesh.sizes(jax.device_count())
    except ValueError as error:
        raise flags.ConfigError(str(error)) from error
    built = programs.Programs(config, rules)
    store = checkpoints.CheckpointStore(
        directory / "checkpoints",
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every or None,
    )
    _bind(config, directory, bool(store.steps()))
    facts = {"mesh": dict(built.mesh.shape)} | provenance.collect()
    provenance.write(directory, facts)
    return Parts(corpus, train_data, validation_data, built, store, facts)


def _bind(
    config: config_lib.TrainConfig, directory: pathlib.Path, saved: bool
) -> None:
    rows = directory / "metrics.jsonl"
    begun = saved or (rows.exists() and rows.stat().st_size > 0)
    try:
        workdir.bind_config(
            directory,
            config_lib.to_dict(config),
            allowed=config_lib.FREE_FIELDS,
            # A start that failed before its first row left nothing that a
            # corrected command could spoil.
            override=not begun,
        )
    except ValueError as error:
        raise flags.ConfigError(str(error)) from error
