"""The training loop: set up, resume, step, validate, save, stop.

Kill the process anywhere, start the same command again, and metrics.jsonl and
the parameters end up the same, bit for bit.  Three rules keep that promise.  A
step is a function of the state, its number and its batch.  Its row is on disk
before its checkpoint, and rows behind the restored step are dropped.  A row
that still waits for its validation travels in the checkpoint.
"""

from collections.abc import Callable
import pathlib
import platform
import time
from typing import Any, NamedTuple

import jax

from seqjax import data
from seqjax.parallel import sharding
from seqjax.training import background
from seqjax.training import binding
from seqjax.training import checkpoints
from seqjax.training import compile_cache
from seqjax.training import config as config_lib
from seqjax.training import evaluation
from seqjax.training import flags
from seqjax.training import metrics
from seqjax.training import preemption
from seqjax.training import profiling
from seqjax.training import programs
from seqjax.training import progress
from seqjax.training import rows
from seqjax.training import setup
from seqjax.training import step
from seqjax.training import workdir

# What a user can put right; each message says how.
BAD_INPUT = (
    flags.ConfigError,
    data.DataError,
    checkpoints.CheckpointError,
    metrics.MetricsError,
    workdir.WorkdirError,
)


class Outcome(NamedTuple):
    """What a finished run hands back.

    Attributes:
      step: updates done.
      params: the model's variables.
      model: the module they belong to.
      validation: the numbers of the last validation.
      already_done: the run was finished before it was started.
      corpus: the text that was read.
    """

    step: int
    params: Any
    model: Any
    validation: dict[str, float]
    already_done: bool
    corpus: data.Corpus


def run(
    config: config_lib.TrainConfig,
    directory: str | pathlib.Path,
    *,
    rules: sharding.ShardingRules | None = None,
    say: Callable[[str], None] = progress.say,
    initial: programs.InitialParams | None = None,
) -> Outcome:
    """``train`` under a lock and a flag of its own."""
    setup.require_devices()
    with (
        workdir.WorkdirLock(directory),
        preemption.PreemptionFlag() as flag,
    ):
        return train(
            config, directory, flag, rules=rules, say=say, initial=initial
        )


def train(
    config: config_lib.TrainConfig,
    directory: str | pathlib.Path,
    flag: preemption.PreemptionFlag,
    *,
    rules: sharding.ShardingRules | None = None,
    say: Callable[[str], None] = progress.say,
    initial: programs.InitialParams | None = None,
) -> Outcome:
    """Trains until done, stopped, or failed.

    Args:
      config: what to run; already validated.
      directory: the workdir, locked; a run that is there is resumed.
      flag: stops the run.
      rules: sharding of the state; the default splits large leaves over fsdp.
      say: prints a line of progress.
      initial: gives the parameters of a run that begins; None for random ones.

    Raises:
      ConfigError, DataError, MetricsError, CheckpointError: bad input, each
        with its remedy; what was trained is saved.
      NonFiniteError: see TrainConfig.nonfinite.
      PreemptedError: stopped by the flag, or by a data worker's death, which
        the message then tells; everything is saved.
    """
    directory = pathlib.Path(directory).absolute()
    cache = compile_cache.enable(config.compile_cache, directory)
    rules = rules or sharding.ShardingRules()
    run = _Run(config, directory, rules, say, flag, cache, initial)
    return run.execute()


class _Run:
    """The variables of one run; ``execute`` reads from top to bottom."""

    def __init__(
        self,
        config: config_lib.TrainConfig,
        directory: pathlib.Path,
        rules: sharding.ShardingRules,
        say: Callable[[str], None],
        flag: preemption.PreemptionFlag,
        cache: pathlib.Path | None,
        initial: programs.InitialParams | None,
    ):
        self.config, self.flag, self.directory = config, flag, directory
        self.cache, self.initial = cache, initial
        self.parts = setup.assemble(config, directory, rules, flag.alone)
        self.programs, self.store = self.parts.programs, self.parts.store
        self.progress = self.parts.progress(config, say)
        self.profiler = profiling.Profiler(
            config.profile.window(), directory / "profile"
        )
        self.step = 0
        self.state: Any = None
        self.position = self.parts.train_data.get_state()
        # The last launched step whose metrics are still on the device, and
        # the row of a step that waits for its validation.
        self.launched: tuple[int, dict[str, jax.Array]] | None = None
        self.row: rows.Row | None = None
        self.validation: dict[str, float] = {}
        self.left_out = 0  # updates in succession that were not finite

    def execute(self) -> Outcome:
        """Restores or initialises, trains, and closes what was opened."""
        lost = False
        try:
            self._restore()
            already_done = self.step == self.config.steps and not self.row
            written = self.step - 1 if self.row else self.step
            metrics.check_rows(self.directory / "metrics.jsonl", written)
            self.writer = metrics.MetricsWriter(
                self.directory, resume_step=written
            )
            try:
                if not already_done:
                    self._train_or_save()
            finally:
                self.profiler.close()
                self.writer.close()
        except jax.errors.JaxRuntimeError:
            # Saving would wait for a process that is gone.
            lost = jax.process_count() > 1
            raise
        finally:
            self.parts.train_data.close()
            if not lost:
                self.store.close()
        return Outcome(
            step=self.step,
            params=self.state.params,
            model=self.programs.model,
            validation=self.validation,
            already_done=already_done,
            corpus=self.parts.corpus,
        )

    def _restore(self) -> None:
        restored = self.store.restore(self.programs.abstract_state)
        if restored is None:
            return
        self.state, self.step = restored.state, restored.step
        self.parts.train_data.set_state(restored.data_state)
        self.position = restored.data_state
        meta = restored.meta
        self.row = rows.decode(meta["unfinished_row"])
        self.validation = meta["validation"]
        self.left_out = meta["left_out_in_succession"]
        if self.row is not None:
            self._take_finished_row()
        if meta["dtype"] != self.parts.provenance["dtype"]:
            self.progress.say(
                f"computing in {self.parts.provenance['dtype']}, which "
                f'model.dtype "auto" means here; until now it was '
                f"{meta['dtype']}"
            )

    def _take_finished_row(self) -> None:
        """The row that was unfinished when saved may be finished since."""
        path = self.directory / "metrics.jsonl"
        found = metrics.row_of(path, self.step)
        if found is not None and "validation_loss" in found:
            self.row = None
            self.validation = {
                name: value
                for name, value in found.items()
                if name.startswith("validation_")
            }

    def _train_or_save(self) -> None:
        """Trains; what stops it before the end leaves a checkpoint."""
        timing = self.writer.timing
        timing(self.step, event="start", host=platform.node())
        try:
            self._train()
        except background.PreemptedError:
            self._save_stopped(f"stopped by {self.flag.cause}")
            raise
        except data.DataError as error:
            # The other processes of a job wait in a collective that this one
            # does not come to: nothing can be saved then.
            if jax.process_count() == 1:
                self._save_stopped("stopped for want of data")
            text = flags.with_paths(str(error), "data", self.config.data)
            if isinstance(error, data.WorkerKilled):
                raise background.PreemptedError(text) from error
            raise data.DataError(text) from error
        except FloatingPointError as error:
            raise rows.under_debug(self.step, error) from error
        finally:
            traces = {f"traces_{k}": n for k, n in step.traces.items()}
            timing(self.step, event="end", **traces)
        self.store.wait()

    def _train(self) -> None:
        config, stop = self.config, self.flag.alone
        self.progress.say(self.parts.describe(self.step))
        upcoming = background.Job(self._read)
        if self.state is None:
            self.state = self.programs.init(self.progress, stop, self.initial)
        if self.row is not None:
            self._finish_row()
        if self.step < config.steps:
            self.programs.prepare_train_step(self.progress, stop)
        self.progress.start(self.step)
        while self.step < config.steps:
            batch, position = self._wait(upcoming)
            if self.step + 1 < config.steps:
                upcoming = background.Job(self._read)
            self.profiler.before(self.step + 1)
            self.state, result = self.programs.train_step(
                self.state, self.programs.put(batch)
            )
            self.step, self.position = self.step + 1, position
            # The step before is read only now that the device is busy.
            previous, self.launched = self.launched, (self.step, result)
            if previous is not None:
                self._write(self._row(previous))
            self.profiler.after(self.step, result)
            self._boundary()

    def _boundary(self) -> None:
        """Validates, saves or stops after a step, where that is due."""
        config, last = self.config, self.step == self.config.steps
        evaluating = last or self.step % config.eval_every == 0
        saving = last or self.step % config.checkpoint.every == 0
        stopping = self.flag.agreed()
        if not (evaluating or saving or stopping):
            return
        assert self.launched is not None
        launched, self.launched = self.launched, None
        self.row = self._row(launched)
        self.progress.pause()
        if evaluating:
            self.row["validation"] = None
            if stopping:
                raise background.PreemptedError
        self._finish_row()
        if saving:
            self._save()
        if stopping:
            raise background.PreemptedError
        self.progress.resume()

    def _read(self) -> tuple[Any, dict[str, Any]]:
        """The next batch, and the position behind it."""
        return next(self.parts.train_data), self.parts.train_data.get_state()

    def _wait(self, upcoming: background.Job[Any]) -> Any:
        begin = time.monotonic()
        result = upcoming.wait(
            self.flag.alone,
            lambda: self.progress.still("waiting for data", begin),
        )
        self.progress.waited(time.monotonic() - begin)
        return result

    def _row(self, launched: tuple[int, dict[str, jax.Array]]) -> rows.Row:
        row, finite = rows.fetch(*launched)
        self.left_out = 0 if finite else self.left_out + 1
        if not finite:
            policy, steps = self.config.nonfinite, self.config.steps
            self.progress.say(
                rows.left_out(row, self.left_out, policy, steps, self.store)
            )
        return row

    def _finish_row(self) -> None:
        """Validates if the waiting row wants it, then writes the row."""
        assert self.row is not None
        row = dict(self.row)
        begin = time.monotonic()
        if "validation" in row:
            del row["validation"]
            self.programs.prepare_eval_step(self.progress, self.flag.alone)
            self.validation = evaluation.evaluate(
                self.programs.eval_step,
                self.state.params,
                self.parts.validation_data,
                self.programs.put,
                self.flag.alone,
            )
            rows.check_validation(self.step, self.validation, self.store)
            row |= self.validation
        self._write(row)
        if "validation" in self.row:
            self.progress.validation(
                self.step, self.validation, time.monotonic() - begin
            )
        self.row = None

    def _write(self, row: rows.Row) -> None:
        scalars = {name: v for name, v in row.items() if name != "step"}
        self.writer.write(row["step"], **scalars)
        numbers = self.progress.step(row["step"], row["loss"], row["tokens"])
        if numbers:
            self.writer.timing(row["step"], **numbers)

    def _save(self) -> None:
        """Rows first, then the checkpoint that counts on them."""
        self.writer.flush()
        meta = {
            "unfinished_row": rows.encode(self.row),
            "validation": self.validation,
            "left_out_in_succession": self.left_out,
            **binding.describe(
                config_lib.to_dict(self.config), config_lib.FREE_FIELDS
            ),
            **self.parts.provenance,
        }
        self.store.save(self.step, self.state, self.position, meta)
        compile_cache.seal(self.cache)

    def _save_stopped(self, why: str) -> None:
        if self.state is None:
            self.progress.say(f"{why} before the first step: nothing to save")
            return
        if self.launched is not None:
            self._write(self._row(self.launched))
        self._save()
        self.store.wait()
        self.progress.say(
            f"{why}, saved after step {self.step}; the same command goes on "
            f"from there"
        )
