"""Keeps the GPU benchmark going when the process that measures breaks.

A kernel that reads where it may not leaves CUDA unusable in its process, and a
library may crash: the row is written down with the reason, and a new process
goes on behind it.  One that does not end in time is ended.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks import _gpu_measure

EXIT_BROKEN = 3  # of a process in which CUDA is unusable
GRACE = 45.0  # seconds for the row that was begun last
Row = _gpu_measure.Row


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file of results; none where there is no file."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def write(
    path: pathlib.Path,
    about: dict[str, Any],
    rows: Sequence[Row],
    now: Row | None = None,
) -> None:
    """In one step: whoever stops the benchmark finds a whole file.

    Args:
      path: of the file.
      about: where and with what the rows were made.
      rows: those that are made.
      now: that which is being made.
    """
    data = {"about": about, "rows": [r._asdict() for r in rows]}
    if now is not None:
        data["now"] = now._asdict()
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def watch(
    command: Sequence[str],
    path: pathlib.Path,
    seconds: float,
    grace: float = GRACE,
) -> int:
    """Runs a process that measures, and others after it while they break.

    Args:
      command: measures, with --seconds=S, and with --resume behind the rows of
        `path`, which it writes anew without.
      path: of the file of results.
      seconds: in which rows are begun.
      grace: for the last of them.

    Returns:
      The status of the last process; 0 of one that was ended for its time.
    """
    # Whoever ends this process ends the others too.
    stop = signal.SIGTERM
    former = signal.signal(stop, lambda *_: sys.exit(128 + stop))
    try:
        return _watch(list(command), path, time.monotonic() + seconds, grace)
    finally:
        signal.signal(stop, former)


def _watch(command, path, end, grace) -> int:
    while True:
        left = max(0.0, end - time.monotonic())
        before = stamp(path)
        child = subprocess.Popen(
            [*command, f"--seconds={left:.1f}"], start_new_session=True
        )
        try:
            code = child.wait(left + grace)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_all(child)
        if stamp(path) == before:  # it came to no row
            return code or 1
        _write_down(path, code)
        if code is None or code in range(EXIT_BROKEN):
            return code or 0
        command = [*command, "--resume"]


def stamp(path: pathlib.Path) -> int | None:
    """When a file was written last; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _end_all(child: subprocess.Popen) -> None:
    """The process and its own, which it may have left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _write_down(path: pathlib.Path, code: int | None) -> None:
    """The row that was being made, if any, with what happened."""
    data = json.loads(path.read_text())
    if "now" not in data:
        return
    note = "out of time"
    if code is not None:
        note = f"its process ended with {code}"
    rows = [*read(path), Row(**data["now"])._replace(note=note)]
    write(path, data["about"], rows)
