"""Compile a function once, then time it among its rivals."""

from collections.abc import Callable, Sequence
import statistics
import time
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A compiled function.

    Attributes:
      call: the executable; takes arrays of the compiled shapes.
      compile_seconds: time from the traced function to the executable.
      temporary_bytes: peak scratch memory besides arguments and results, as
        the compiler counts it.
    """

    call: Callable[..., Any]
    compile_seconds: float
    temporary_bytes: int


class Timing(NamedTuple):
    """Milliseconds of one call: the median and the quartiles around it."""

    median: float
    lower: float
    upper: float


def compile_program(function: Callable[..., Any], *args) -> Program:
    """Compiles a function for arguments, arrays or `jax.ShapeDtypeStruct`s."""
    lowered = jax.jit(function).lower(*args)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(
            "the compiler of platform"
            f" {jax.default_backend()!r} does not report memory"
        )
    return Program(compiled, seconds, memory.temp_size_in_bytes)


def interleave(
    calls: Sequence[Callable[[], Any]], repeats: int
) -> list[Timing]:
    """Times the calls in turn, so that a slow minute is shared by all.

    Every measured run follows an unmeasured one of the same call, which meets
    the caches and the heap as the rival before left them: a call is timed in
    its own company, as in a loop of training steps.

    Args:
      calls: functions without arguments that return arrays.
      repeats: measured runs of each, at least 1.

    Returns:
      One Timing a call, in their order.

    Raises:
      ValueError: repeats is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, taken, strict=True):
            jax.block_until_ready(call())
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1e3 * (time.perf_counter() - start))
    return [_summary(times) for times in taken]


def _summary(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper)
