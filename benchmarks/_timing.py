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

    Every call runs once unmeasured. The round then starts with another call
    each time, so none always follows the same neighbour.

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
    for call in calls:
        jax.block_until_ready(call())
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats):
        for i in range(len(calls)):
            i = (i + turn) % len(calls)
            start = time.perf_counter()
            jax.block_until_ready(calls[i]())
            taken[i].append(1e3 * (time.perf_counter() - start))
    return [_summary(times) for times in taken]


def _summary(times: list[float]) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper)
