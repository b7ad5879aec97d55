"""The parts of a run, put together and checked before the first step."""

from collections.abc import Callable
import os
import pathlib
from typing import Any, NamedTuple

import jax

from seqjax import data
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from seqjax.training import _processes
from seqjax.training import background
from seqjax.training import binding
from seqjax.training import checkpoints
from seqjax.training import config as config_lib
from seqjax.training import feeding
from seqjax.training import flags
from seqjax.training import metrics
from seqjax.training import programs
from seqjax.training import progress as progress_lib
from seqjax.training import provenance


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
        return progress_lib.Progress(
            steps=config.steps,
            every=config.progress_every,
            flops_per_token=self.programs.flops_per_token,
            say=say,
        )


def require_devices() -> None:
    """Raises ConfigError where JAX finds none, such as for a wrong platform."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise flags.ConfigError(
            f"JAX finds no device: {str(error).strip().splitlines()[0]}; set "
            f"JAX_PLATFORMS (now {os.environ.get('JAX_PLATFORMS', '')!r}) to "
            f"a platform that is here, such as cpu, or leave it out"
        ) from error


def assemble(
    config: config_lib.TrainConfig,
    directory: pathlib.Path,
    rules: sharding.ShardingRules,
    stop: Callable[[], bool],
) -> Parts:
    """Reads the text, builds the programs, opens and binds the workdir.

    Raises:
      DataError: text that is missing, unreadable, empty or too short.
      ConfigError: processes with different configurations, a batch that the
        devices do not divide, a mesh that does not fit them, or a workdir of
        another configuration.
      MetricsError: a workdir whose rows have lost their checkpoints.
      PreemptedError: ``stop`` came true while the text was read.
    """
    _require_same_config(config)
    try:
        data_shards, fsdp, _ = config.mesh.sizes(jax.device_count())
    except ValueError as error:
        raise flags.ConfigError(str(error)) from error
    config.check_devices(data_shards * fsdp)
    shape = (config.data.batch_size, config.data.sequence_length)
    feed = feeding.feed(mesh_lib.make_mesh(config.mesh), shape)
    shard = (feed.index, feed.count)
    try:
        corpus = background.Job(lambda: data.corpus(config.data)).wait(stop)
        train_data = data.make_train_iterator(
            config.data, *shard, corpus=corpus
        )
        validation_data = data.make_validation_batches(
            config.data, *shard, corpus=corpus
        )
    except data.DataError as error:
        text = flags.with_paths(str(error), "data", config.data)
        raise data.DataError(text) from error
    built = programs.Programs(config, rules)
    _require_checkpoint_folder(directory)
    store = checkpoints.CheckpointStore(
        directory / "checkpoints",
        keep=config.checkpoint.keep,
        keep_every=config.checkpoint.keep_every or None,
    )
    _bind(config, directory, store)
    facts = {
        "mesh": dict(built.mesh.shape),
        # What "auto" has become; config.json keeps what was asked for, which
        # is the same run on every platform.
        "dtype": built.model.config.dtype,
    } | provenance.collect()
    provenance.write(directory, facts)
    return Parts(corpus, train_data, validation_data, built, store, facts)


def _require_same_config(config: config_lib.TrainConfig) -> None:
    """Raises ConfigError where the processes were given different runs.

    Each builds its own program: with another rate their copies of a parameter
    would drift apart in silence, with another batch they would wait for ever.
    """
    mine = {"config": config_lib.to_dict(config), "jax": jax.__version__}
    each = _processes.gather_json(mine)
    faults = [
        f"process {index}: {fields}"
        for index, theirs in enumerate(each)
        if (fields := binding.differences(each[0], theirs))
    ]
    if faults:
        raise flags.ConfigError(
            "every process must be given the same configuration and versions; "
            "these differ from process 0's:\n  " + "\n  ".join(faults) + "\n"
            "Start the same command from the same files in all"
        )


def _require_checkpoint_folder(directory: pathlib.Path) -> None:
    """Raises MetricsError for rows beside which no checkpoints lie.

    A kill before the first checkpoint leaves the folder, empty, and those
    rows are computed again; without it, somebody took it away.
    """
    last = metrics.last_step(directory / "metrics.jsonl")
    folder = directory / "checkpoints"
    lost = _processes.is_first() and last > 0 and not folder.is_dir()
    if _processes.where_true(lost):
        raise _checkpoints_gone(directory, last)


def _checkpoints_gone(
    directory: pathlib.Path, last: int
) -> metrics.MetricsError:
    return metrics.MetricsError(
        f"{directory}/metrics.jsonl has rows up to step {last}, but the "
        f"checkpoints behind them are gone from {directory}/checkpoints. "
        "Nothing was changed. Bring the folder back; or, to begin again at "
        "step 0, move metrics.jsonl away or choose another workdir"
    )


def _bind(
    config: config_lib.TrainConfig,
    directory: pathlib.Path,
    store: checkpoints.CheckpointStore,
) -> None:
    saved = store.steps()
    last = metrics.last_step(directory / "metrics.jsonl")
    begun = bool(saved) or last > 0
    kept = binding.kept(directory).get("checkpoint", {}).get("every", 0)
    # The second save waits for the first one, and for its rows the third.
    if not saved and last > 2 * max(config.checkpoint.every, kept):
        raise _checkpoints_gone(directory, last)
    try:
        for step in saved:
            try:
                meta = store.read_meta(step)
            except checkpoints.CheckpointDamaged:
                continue  # restoring names it and takes another one
            binding.check_described(
                meta,
                config_lib.to_dict(config),
                config_lib.FREE_FIELDS,
                f"checkpoint step {step} in {store.directory}",
            )
        binding.bind_config(
            directory,
            config_lib.to_dict(config),
            allowed=config_lib.FREE_FIELDS,
            # A start that failed before its first row left nothing that a
            # corrected command could spoil.
            override=not begun,
        )
    except ValueError as error:
        raise flags.ConfigError(str(error)) from error
