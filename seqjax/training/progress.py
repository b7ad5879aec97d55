"""What a run says while it runs: one line now and then, on stdout."""

from collections.abc import Callable
import time
from typing import TypeVar

import jax

from seqjax.training import background

T = TypeVar("T")

# Dense peak of one device in FLOP/s for bfloat16 inputs, from the vendors'
# data sheets; the key is found in the device kind that JAX reports.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6": 918e12,
}

_SINGLY = 3  # the first steps have a line each
_QUIET_SECONDS = 20.0  # say something when nothing was said for so long


def say(text: str) -> None:
    """Prints a line at once, in the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def peak_flops(device_kind: str) -> float | None:
    """The peak of a device kind in FLOP/s, or None where it is not known."""
    for name, peak in PEAK_FLOPS.items():
        if name.lower() in device_kind.lower():
            return peak
    return None


def duration(seconds: float) -> str:
    """Seconds as "42s", "3m07s" or "5h03m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Progress lines and the times behind them."""

    def __init__(
        self,
        *,
        steps: int,
        every: int,
        flops_per_token: float,
        say: Callable[[str], None],
    ):
        """Args: counts of the whole run, over all devices.

        A token is one that the loss counts: padding is no work done.
        """
        self._steps = steps
        self._every = every
        self._flops = flops_per_token
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak else None
        self._say = say
        self._shown = 0
        self._last_said = time.monotonic()
        self._paused_at: float | None = None
        self.start(0)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._last_said = time.monotonic()
        self._say(text)

    def start(self, step: int) -> None:
        """Begins a window of measurement after ``step`` steps."""
        self._window_step = step
        self._window_start = self._now()
        self._waited = 0.0
        self._tokens = 0

    def waited(self, seconds: float) -> None:
        """Adds time that was spent waiting for data."""
        self._waited += seconds

    def pause(self) -> None:
        """Stops the clock: validation and saving are no part of a step."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Lets the clock go on."""
        if self._paused_at is not None:
            self._window_start += time.monotonic() - self._paused_at
            self._paused_at = None

    def _count(self, step: int) -> str:
        return f"step {step:{len(str(self._steps))}d}/{self._steps}"

    def _now(self) -> float:
        if self._paused_at is not None:
            return self._paused_at
        return time.monotonic()

    def step(
        self, step: int, loss: float, tokens: int
    ) -> dict[str, float] | None:
        """Prints the line of a finished step where one is due.

        Returns its numbers, for the timing file.
        """
        self._tokens += tokens
        due = step % self._every == 0 or step == self._steps
        if not due:
            if self._shown < _SINGLY:
                # One step says nothing about speed, only that it goes.
                self._shown += 1
                self.say(f"{self._count(step)}  loss {loss:.4f}")
            return None
        self._shown = _SINGLY
        now = self._now()
        done = max(step - self._window_step, 1)
        seconds = max(now - self._window_start, 1e-9)
        per_step = seconds / done
        numbers = {
            "seconds_per_step": per_step,
            "tokens_per_second": self._tokens / seconds,
            "data_wait_share": min(self._waited / seconds, 1.0),
        }
        line = f"{self._count(step)}  loss {loss:.4f}  "
        line += f"{numbers['tokens_per_second']:,.0f} tokens/s  "
        if self._peak is not None:
            flops = self._flops * numbers["tokens_per_second"]
            numbers["mfu"] = flops / self._peak
            line += f"MFU {100 * numbers['mfu']:.1f} %  "
        line += (
            f"ETA {duration(per_step * (self._steps - step))}  "
            f"data wait {100 * numbers['data_wait_share']:.0f} %"
        )
        self.say(line)
        self.start(step)
        return numbers

    def validation(
        self, step: int, numbers: dict[str, float], seconds: float
    ) -> None:
        """The line of a validation."""
        self.say(
            f"{self._count(step)}  validation: loss "
            f"{numbers['validation_loss']:.4f}, "
            f"{numbers['validation_bits_per_token']:.4f} bits/token over "
            f"{numbers['validation_tokens']:,} tokens, {duration(seconds)}"
        )

    def compiling(
        self, name: str, call: Callable[[], T], stop: Callable[[], bool]
    ) -> T:
        """Runs a compilation, saying so before and how long it took after."""
        begin = time.monotonic()
        self.say(f"compiling {name} ...")
        job = background.Job(call)
        result = job.wait(stop, lambda: self.still(f"compiling {name}", begin))
        elapsed = time.monotonic() - begin
        self.say(f"compiled {name} in {elapsed:.1f} s")
        return result

    def still(self, what: str, begin: float) -> None:
        """A sign of life where nothing was said for a while."""
        now = time.monotonic()
        if now - self._last_said > _QUIET_SECONDS:
            self.say(f"still {what}, {duration(now - begin)} so far")
