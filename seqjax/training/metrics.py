"""metrics.jsonl, the truth of a run; timing.jsonl; TensorBoard events.

metrics.jsonl holds what is a function of configuration, data and step only,
one JSON object a line, so that a run killed and resumed ends with the same
bytes as one that was not. For that the loop writes every row of steps up to
k, calls flush, and only then saves checkpoint k; on resume from k the rows
past k are dropped here and written again by the loop. Wall-clock numbers,
restarts and hosts go to timing.jsonl, which only grows.
"""

from collections.abc import Callable, Iterator
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from seqjax.training import _files
from seqjax.training import _processes

_SHOWN = 8
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsError(RuntimeError):
    """A file of rows is damaged or cannot grow; the message says what to do."""


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a metrics or timing file, oldest first.

    The strings "nan", "inf" and "-inf" come back as floats, and an
    unfinished last line is left out.

    Raises:
      MetricsError: for any other line that is no row, naming file and line.
    """
    path = pathlib.Path(path)
    lines = path.read_bytes().split(b"\n")[:-1]
    return [
        {name: _decode(value) for name, value in row.items()}
        for row in (_parse(line, path, i + 1) for i, line in enumerate(lines))
    ]


def read_timing(
    path: str | os.PathLike, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of a timing file, which is a help and not the truth.

    Lines that are no rows, or a file that is gone, are told through ``say``
    and left out.
    """
    path = pathlib.Path(path)
    if not path.exists():
        say(f"{path} is gone; times before this start are not known")
        return []
    rows, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            rows.append(_parse(line, path, number))
        except MetricsError:
            bad.append(str(number))
    if bad:
        say(f"{path}: lines that are no rows are left out: {', '.join(bad)}")
    return rows


def check_rows(path: str | os.PathLike, step: int) -> None:
    """Raises MetricsError unless there is one row for each step to ``step``.

    A run that goes on from the checkpoint of that step counts on them.
    """
    path = pathlib.Path(path)
    rows = _rows_up_to(path, step) if path.exists() else ()
    found = [row["step"] for row, _ in rows]
    if found == list(range(1, step + 1)):
        return
    have = set(found)
    if len(have) < len(found):
        what = "holds a step more than once"
    else:
        missing = [s for s in range(1, step + 1) if s not in have]
        what = (
            f"lacks rows of steps up to {step}: {_ranges(missing)}"
            if missing
            else "does not hold its rows in order"
        )
    raise MetricsError(
        f"{path} {what}, on which the checkpoint of step {step} counts. "
        "Nothing was changed. Bring back a copy of the file, or choose "
        "another workdir; the same command there computes the same rows again"
    )


def last_step(path: str | os.PathLike) -> int:
    """The step of the last whole row, 0 where there is none."""
    path = pathlib.Path(path)
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        return 0
    return _parse(lines[-1], path, len(lines))["step"]


def row_of(path: str | os.PathLike, step: int) -> dict[str, Any] | None:
    """The last whole row of a step, or None."""
    path = pathlib.Path(path)
    if not path.exists():
        return None
    found = None
    for row, _ in _rows_up_to(path, step):
        if row["step"] == step:
            found = {name: _decode(value) for name, value in row.items()}
    return found


class MetricsWriter:
    """Writes the rows of one run.

    Hold the workdir's lock while it is open. In a job of many processes all
    make the same calls and the first one writes.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None,
        tensorboard: bool = True,
    ):
        """Opens the files and drops rows past resume_step.

        Args:
          workdir: made if it is not there.
          resume_step: step of the restored checkpoint, or None when the run
            starts from nothing; then all rows are dropped.
          tensorboard: also write events into workdir/tensorboard.

        Raises:
          MetricsError: if metrics.jsonl is damaged before its last line.
        """
        self.workdir = pathlib.Path(workdir)
        self._last = -1 if resume_step is None else int(resume_step)
        self._resume_step = self._last
        self._metrics: _files.LineFile | None = None
        self._timing: _files.LineFile | None = None
        self._tensorboard = tensorboard
        self._events = None
        if not _processes.is_first():
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / "metrics.jsonl"
        if path.exists():
            _drop_rows_after(path, self._last)
        self._metrics = _files.LineFile(path)
        self._timing = _files.LineFile(self.workdir / "timing.jsonl")

    def write(self, step: int, **scalars: Any) -> None:
        """Adds a row to metrics.jsonl and its numbers to TensorBoard.

        Args:
          step: at least that of the row before and past resume_step.
          **scalars: numbers, numpy or JAX scalars; a float32 is written with
            all its digits.

        Raises:
          ValueError: for a step out of order or a value that is no number.
          MetricsError: if the row cannot be written, naming the file.
        """
        step = int(step)
        if step < self._last or step == self._resume_step:
            raise ValueError(
                f"step must not go back: got {step} after {self._last}; rows "
                "of a step are written before its checkpoint is saved"
            )
        row = {name: _number(v, name) for name, v in scalars.items()}
        line = _line(step, row)
        self._last = step
        if self._metrics is None:
            return
        _append(self._metrics, line)
        if self._tensorboard:
            events = self._open_events()
            for name, value in row.items():
                events.add_scalar(name, value, step)

    def timing(self, step: int, **scalars: Any) -> None:
        """Adds a row to timing.jsonl; numbers and short texts.

        Raises:
          ValueError: for a value that is neither.
          MetricsError: if the row cannot be written, naming the file.
        """
        row = {
            name: v if isinstance(v, str) else _number(v, name)
            for name, v in scalars.items()
        }
        line = _line(int(step), row)
        if self._timing is not None:
            _append(self._timing, line)

    def flush(self) -> None:
        """Makes all rows durable; call before saving a checkpoint."""
        for file in (self._metrics, self._timing):
            if file is not None:
                file.sync()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes; may be called twice."""
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        if self._events is not None:
            self._events.close()
            self._events = None
            self._tensorboard = False

    def __enter__(self) -> "MetricsWriter":
        """Returns itself."""
        return self

    def __exit__(self, *exception) -> None:
        """Closes the files."""
        self.close()

    def _open_events(self):
        if self._events is None:
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(
                str(self.workdir / "tensorboard"),
                purge_step=self._resume_step + 1,
            )
        return self._events


def _append(file: _files.LineFile, line: str) -> None:
    try:
        file.append(line)
    except OSError as error:
        raise MetricsError(
            f"cannot write a row to {file.path}: {error.strerror}; free space "
            "there and start the same command again, it resumes from its last "
            "checkpoint"
        ) from error


def _rows_up_to(
    path: pathlib.Path, step: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Row and size of each whole line up to the first one past ``step``."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        row = _parse(line, path, number)
        if row["step"] > step:
            return
        yield row, len(line) + 1


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as "1, 4-6"; the first few, then a count."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{a}-{b}" if b > a else f"{a}" for a, b in runs[:_SHOWN]]
    left = len(runs) - _SHOWN
    return ", ".join(shown) + (f" and {left} more gaps" if left > 0 else "")


def _drop_rows_after(path: pathlib.Path, step: int) -> None:
    content = path.read_bytes()
    kept = sum(size for _, size in _rows_up_to(path, step))
    if kept != len(content):
        _files.replace(path, content[:kept])


def _parse(line: bytes, path: pathlib.Path, number: int) -> dict:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    except (ValueError, RecursionError):
        pass
    raise MetricsError(
        f"{path}, line {number} is not a row with a step: {line[:60]!r}; "
        "bring back a copy of the file, or delete that line"
    )


def _line(step: int, row: dict[str, Any]) -> str:
    if "step" in row:
        raise ValueError("step is the name of the row's own field")
    coded = {name: _encode(value) for name, value in row.items()}
    return json.dumps({"step": step, **coded}, allow_nan=False)


def _number(value: Any, name: str) -> int | float | bool:
    if not isinstance(value, bool | int | float):
        array = np.asarray(value)
        kind = array.dtype.kind
        # ml_dtypes floats such as bfloat16 have kind 'V' and convert exactly.
        if array.ndim == 0 and kind == "V":
            value = float(array)
        elif array.ndim == 0 and kind in "biuf":
            value = array.item()
        else:
            raise ValueError(
                f"{name} must be one number, got {type(value).__name__} of "
                f"shape {array.shape} and dtype {array.dtype}"
            )
    return value


def _encode(value: Any) -> Any:
    """JSON knows no NaN or infinity; they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: Any) -> Any:
    return _NONFINITE.get(value, value) if isinstance(value, str) else value
