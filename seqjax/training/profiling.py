"""A profiler trace of a window of steps."""

import pathlib
from typing import Any

import jax


class Profiler:
    """Starts and stops ``jax.profiler`` around the steps first..last."""

    def __init__(self, window: tuple[int, int] | None, directory: pathlib.Path):
        """Args: the window in steps counted from 1, and where to write."""
        self._window = window
        self._directory = directory
        self._running = False

    def before(self, step: int) -> None:
        """Call before step ``step`` is launched."""
        if self._window and not self._running:
            first, last = self._window
            if first <= step <= last:
                jax.profiler.start_trace(str(self._directory))
                self._running = True

    def after(self, step: int, result: Any) -> None:
        """Call with the results of step ``step``."""
        if self._running and self._window and step >= self._window[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that still runs."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._window = None
