"""A bar on standard error for what takes its time."""

import sys
import time

_WIDTH = 30


class Bar:
    """Shows how many bytes are done; on a terminal in one line.

    Args:
      total: bytes.
      shown: whether anything is written.
    """

    def __init__(self, total: int, shown: bool):
        self._total, self._done = max(total, 1), 0
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """Counts so many bytes more."""
        self._done += count
        now = time.monotonic()
        # A terminal ten times a second, a log every ten seconds.
        if now - self._last >= (0.1 if self._terminal else 10):
            self._last = now
            self._say("\r" if self._terminal else "\n")

    def close(self) -> None:
        """Shows the end."""
        self._say("\n")

    def _say(self, end: str) -> None:
        if not self._shown:
            return
        share = min(self._done / self._total, 1.0)
        filled = round(share * _WIDTH)
        seconds = max(time.monotonic() - self._start, 1e-9)
        bar = "#" * filled + "." * (_WIDTH - filled)
        sys.stderr.write(
            f"loading [{bar}] {100 * share:3.0f}%  {self._done / 1e6:,.1f} MB, "
            f"{self._done / 1e6 / seconds:,.0f} MB/s{end}"
        )
        sys.stderr.flush()
