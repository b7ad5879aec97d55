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
from seqjax.training import checkpoints
from seqjax.training import compile_cache
from seqjax.training import config as config_lib
from seqjax.training import evaluation
from seqjax.training import flags
from seqjax.training import metrics
from seqjax.training import preemption
from seqjax.training import profiling
from seqjax.training import progress
from seqjax.training import rows
from seqjax.training import setup
from seqjax.training import step
from seqjax.training import workdir

EXIT_DONE = 0
# What a user can put right; each message says how.
BAD_INPUT = (
    flags.ConfigError,
    data.DataError,
    checkpoints.CheckpointError,
    metrics.MetricsError,
    workdir.WorkdirLocked,
    OSError,
)


class Outcome(NamedTuple):
    """What a run hands back.

    Attributes:
      exit_code: EXIT_DONE, or preemption.EXIT_PREEMPTED.
      step: updates done.
      params: the model's variables; None if stopped before there were any.
      model: the module they belong to.
      validation: the numbers of the last validation; empty before the first.
      already_done: the run was finished before it was started.
      corpus: the text that was read.
    """

    exit_code: int
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
) -> Outcome:
    """Trains until done, stopped by a signal, or failed.

    Args:
      config: what to run; already validated.
      directory: the workdir; a run that is there is resumed.
      rules: sharding of the state; the default splits large leaves over fsdp.
      say: prints a line of progress.

    Raises:
      ConfigError, DataError, WorkdirLocked, CheckpointError: bad input, each
        with its remedy.
      NonFiniteError: see TrainConfig.nonfinite.
    """
    directory = pathlib.Path(directory).absolute()
    with (
        workdir.WorkdirLock(directory),
        preemption.PreemptionFlag() as flag,
    ):
        cache = compile_cache.enable(config.compile_cache, directory)
        rules = rules or sharding.ShardingRules()
        return _Run(config, directory, rules, say, flag, cache).execute()


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
    ):
        self.config, self.flag, self.directory = config, flag, directory
        self.cache = cache
        # Several processes must agree before one leaves a collective, so
        # there no wait is cut short and only steps are interrupted.
        self.stop = lambda: flag.requested and jax.process_count() == 1
        self.parts = setup.assemble(config, directory, rules)
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

    def execute(self) -> Outcome:
        """Restores or initialises, trains, and closes what was opened."""
        try:
            self._restore()
            already_done = self.step == self.config.steps and not self.row
            self.writer = metrics.MetricsWriter(
                self.directory,
                resume_step=self.step - 1 if self.row else self.step,
            )
            try:
                exit_code = EXIT_DONE
                if not already_done:
                    timing = self.writer.timing
                    timing(self.step, event="start", host=platform.node())
                    exit_code = self._train()
                    self.store.wait()
                    traces = {f"traces_{k}": n for k, n in step.traces.items()}
                    timing(self.step, event="end", **traces)
            finally:
                self.profiler.close()
                self.writer.close()
        finally:
            self.parts.train_data.close()
            self.store.close()
        return Outcome(
            exit_code=exit_code,
            step=self.step,
            params=None if self.state is None else self.state.params,
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
        self.row = rows.decode(restored.meta["unfinished_row"])
        self.validation = restored.meta["validation"]

    def _train(self) -> int:
        config, stop = self.config, self.stop
        try:
            self.progress.say(self.parts.describe(self.step))
            upcoming = background.Job(self._read)
            if self.state is None:
                self.state = self.programs.init(self.progress, stop)
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
        except background.PreemptedError:
            self._save_preempted()
            return preemption.EXIT_PREEMPTED
        return EXIT_DONE

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
            self.stop, lambda: self.progress.still("waiting for data", begin)
        )
        self.progress.waited(time.monotonic() - begin)
        return result

    def _row(self, launched: tuple[int, dict[str, jax.Array]]) -> rows.Row:
        row = rows.fetch(*launched)
        told = rows.check(row, self.config.nonfinite, self.store)
        if told:
            self.progress.say(told)
        return row

    def _finish_row(self) -> None:
        """Validates if the waiting row wants it, then writes the row."""
        assert self.row is not None
        row = dict(self.row)
        begin = time.monotonic()
        if "validation" in row:
            del row["validation"]
            self.programs.prepare_eval_step(self.progress, self.stop)
            self.validation = evaluation.evaluate(
                self.programs.eval_step,
                self.state.params,
                self.parts.validation_data,
                self.programs.put,
                self.stop,
            )
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
        numbers = self.progress.step(row["step"], row["loss"])
        if numbers:
            self.writer.timing(row["step"], **numbers)

    def _save(self) -> None:
        """Rows first, then the checkpoint that counts on them."""
        self.writer.flush()
        meta = {
            "unfinished_row": rows.encode(self.row),
            "validation": self.validation,
            **self.parts.provenance,
        }
        self.store.save(self.step, self.state, self.position, meta)
        compile_cache.seal(self.cache)

    def _save_preempted(self) -> None:
        if self.state is None:
            self.progress.say("stopped before the first step: nothing to save")
            return
        if self.launched is not None:
            self._write(self._row(self.launched))
        self._save()
        self.store.wait()
        self.progress.say(
            f"stopped by {self.flag.signal_name}, saved after step "
            f"{self.step}; the same command goes on from there"
        )
