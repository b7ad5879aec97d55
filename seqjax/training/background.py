"""Work in a thread that the main thread waits for without being deaf.

A compilation or a read of data can take minutes, and a signal handler of
Python runs only in the main thread between its bytecodes.  So the long call
goes into a daemon thread and the main thread polls: for the result, and for a
request to stop.
"""

from collections.abc import Callable
import threading
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


class PreemptedError(Exception):
    """The run was asked to stop while it waited."""


class Job(Generic[T]):
    """One call in a daemon thread; an error is raised where it is awaited."""

    def __init__(self, call: Callable[[], T]):
        """Starts the call."""
        self._call = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self._done.set()

    @property
    def running(self) -> bool:
        """Whether the call has not ended yet."""
        return not self._done.is_set()

    def wait(
        self,
        stop: Callable[[], bool],
        tell: Callable[[], None] | None = None,
    ) -> T:
        """The call's result.

        Args:
          stop: polled; once true, raises PreemptedError and leaves the call
            to itself.
          tell: called at every poll, to say that something is going on.
        """
        while not self._done.wait(POLL_SECONDS):
            if stop():
                raise PreemptedError
            if tell is not None:
                tell()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
