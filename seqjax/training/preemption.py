"""SIGTERM and SIGINT as a flag: finish the step, save, leave with code 75.

Schedulers send SIGTERM some seconds before they kill. The loop polls the flag
between steps, saves, and exits with EXIT_PREEMPTED, which means: run the same
command again.  This module imports nothing slow, so that a script can raise
the flag's handlers before it imports JAX.
"""

import os
import signal
import threading
from typing import Any

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionFlag:
    """Context manager that turns SIGTERM and SIGINT into a flag.

    A second signal changes nothing, so that a save in progress is finished;
    only SIGKILL ends the process at once. Handlers that stood before are put
    back on exit. Children forked meanwhile ignore both signals: when a
    scheduler signals the whole process group, data workers live on until the
    main process has saved and closed them.
    """

    def __init__(self):
        """Installs nothing yet."""
        self._pid = 0
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._lookout: Any = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come to this process."""
        return self._signal is not None

    @property
    def signal_name(self) -> str | None:
        """Name of the first signal, such as 'SIGTERM', or None."""
        if self._signal is None:
            return None
        return signal.Signals(self._signal).name

    @property
    def cause(self) -> str:
        """Why a job stops: the signal, here or in another process."""
        return self.signal_name or "a signal to another process"

    def alone(self) -> bool:
        """Whether a signal has come and no other process waits for this one.

        Several processes must agree before one leaves a collective, so there
        no wait is cut short and only steps are interrupted.
        """
        from seqjax.training import _processes  # imports JAX

        return self.requested and _processes.count() == 1

    def agreed(self) -> bool:
        """Whether a signal has come to any process of the job.

        All processes must call it at the same steps, and the answer is the
        same in all of them.  With several it is a collective of a few bytes,
        answered at the next call: see ``_processes.Lookout``.
        """
        from seqjax.training import _processes  # imports JAX

        if self._lookout is None:
            self._lookout = _processes.Lookout()
        return self._lookout.ask(self.requested)

    def __enter__(self) -> "PreemptionFlag":
        """Installs the handlers, see ``install``."""
        self.install()
        return self

    def install(self) -> None:
        """Installs the handlers.

        Raises:
          RuntimeError: outside the main thread, where Python cannot.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "PreemptionFlag must be entered in the main thread, got "
                f"thread {threading.current_thread().name!r}"
            )
        self._pid = os.getpid()
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *exception) -> None:
        """Puts the former handlers back."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )
        self._previous.clear()

    def _handle(self, number: int, frame) -> None:
        del frame
        if os.getpid() != self._pid:
            return
        first = self._signal is None
        if first:
            self._signal = number
        name = signal.Signals(number).name
        text = (
            "finishing what is begun and saving, then exit with code "
            f"{EXIT_PREEMPTED}; the same command goes on from there"
            if first
            else "already stopping; SIGKILL stops without saving"
        )
        # Plain write: the handler may interrupt logging itself.
        os.write(2, f"{name}: {text}\n".encode())
