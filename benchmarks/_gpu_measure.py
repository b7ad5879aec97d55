"""Timing on a GPU, and what of it is arithmetic."""

from collections.abc import Callable, Sequence
import math
import statistics
import time
from typing import Any, NamedTuple

# A batch of calls lasts this long, so that starting it counts for nothing.
BATCH_SECONDS = 0.02
# Inputs are rotated through copies of together at least this many bytes, more
# than the second-level cache of any GPU in the table.
ROTATED_BYTES = 256 * 2**20
MOST_COPIES = 16


class Row(NamedTuple):
    """One contender at one shape; None where it was not measured.

    Attributes:
      operator: a name of the case table.
      shape: BxTxHxD.
      contender: "triton", "xla", "fla", "cudnn", "sdpa" or a launcher's name.
      forward_ms: median.
      both_ms: median of forward and backward together.
      forward_roofline: the least possible time over forward_ms.
      both_roofline: likewise.
      ratio: the peer's both_ms over this one's (forward without gradients).
      temporary_mib: of the gradient's program beside inputs and outputs.
      peak_mib: of the same program, with them.
      compile_seconds: of both programs; of a peer to its first results.
      error: largest error of y against float64 over its largest value.
      gradient_error: likewise, the largest of all gradients.
      note: why something was not measured.
    """

    operator: str
    shape: str
    contender: str
    forward_ms: float | None = None
    both_ms: float | None = None
    forward_roofline: float | None = None
    both_roofline: float | None = None
    ratio: float | None = None
    temporary_mib: float | None = None
    peak_mib: float | None = None
    compile_seconds: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    note: str = ""


class Roofline(NamedTuple):
    """What the device reaches: bytes a second, matrix FLOPs a second."""

    bandwidth: float
    flops: float

    def milliseconds(self, bytes_moved: float, flops: float) -> float:
        """The least possible time of a call."""
        return 1e3 * max(bytes_moved / self.bandwidth, flops / self.flops)


def copies(bytes_of_inputs: float) -> int:
    """How many copies of the inputs take turns."""
    wanted = math.ceil(ROTATED_BYTES / max(bytes_of_inputs, 1))
    return max(1, min(MOST_COPIES, wanted))


def median_ms(
    start: Callable[[int], Any],
    wait: Callable[[Any], Any],
    *,
    repeats: int = 15,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Milliseconds of a call: the median over batches of calls.

    Args:
      start: starts call number i without waiting for it.
      wait: waits for what the last `start` returned.
      repeats: batches, at most.
      seconds: for all batches together; three are made in any case.
      clock: gives seconds.

    Returns:
      The median of a batch's time over its calls.
    """
    for i in range(3):
        wait(start(i))
    begin = clock()
    wait(start(0))
    once = max(clock() - begin, 1e-6)
    calls = max(1, min(1000, math.ceil(BATCH_SECONDS / once)))
    taken: list[float] = []
    first = clock()
    while len(taken) < repeats:
        if len(taken) >= 3 and clock() - first > seconds:
            break
        begin = clock()
        last = None
        for i in range(calls):
            last = start(i)
        wait(last)
        taken.append(1e3 * (clock() - begin) / calls)
    return statistics.median(taken)


def with_ratios(rows: Sequence[Row], peer: str) -> list[Row]:
    """The rows, with the time of `peer` at the same operator and shape over
    theirs."""
    times = {
        (r.operator, r.shape): r.both_ms or r.forward_ms
        for r in rows
        if r.contender == peer
    }
    made = []
    for row in rows:
        theirs = times.get((row.operator, row.shape))
        ours = row.both_ms or row.forward_ms
        ratio = None
        if theirs and ours and row.contender != peer:
            ratio = theirs / ours
        made.append(row._replace(ratio=ratio))
    return made


def geometric_mean(values: Sequence[float]) -> float | None:
    """Of positive numbers; None of none."""
    if not values:
        return None
    return math.exp(statistics.fmean(math.log(v) for v in values))


_HEADER = (
    f"{'operator':20}{'BxTxHxD':>17}{'by':>11}{'fwd ms':>9}{'roof':>6}"
    f"{'both ms':>9}{'roof':>6}{'ratio':>7}{'MiB':>8}{'compile':>8}"
    f"{'error':>9}{'grads':>9}"
)


def lines(rows: Sequence[Row]) -> list[str]:
    """The printed table."""
    printed = [_HEADER]
    for r in rows:
        printed.append(
            f"{r.operator:20}{r.shape:>17}{r.contender:>11}"
            f"{_number(r.forward_ms, 9, '.3f')}"
            f"{_number(r.forward_roofline, 6, '.0%')}"
            f"{_number(r.both_ms, 9, '.3f')}"
            f"{_number(r.both_roofline, 6, '.0%')}"
            f"{_number(r.ratio, 7, '.2f')}{_number(r.peak_mib, 8, '.0f')}"
            f"{_number(r.compile_seconds, 8, '.1f')}"
            f"{_number(r.error, 9, '.1e')}"
            f"{_number(r.gradient_error, 9, '.1e')}"
            + (f"  {r.note}" if r.note else "")
        )
    return printed


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for each operator and shape, with our time and our peers'.

    Of both ways, or of forward alone where there is no other.  Ours is the
    kernel's, where there is one.
    """
    by: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.error is None:
            by.setdefault((row.operator, row.shape), {})[row.contender] = row
    printed = [
        f"{'operator':20}{'BxTxHxD':>17}{'ours ms':>10}{'roof':>6}"
        f"{'fla':>9}{'ratio':>7}{'xla':>9}{'ratio':>7}"
    ]
    names = [operator for operator, _ in by]
    for (operator, shape), found in sorted(
        by.items(), key=lambda item: names.index(item[0][0])
    ):
        ours = found.get("triton", found.get("xla"))
        if ours is None or ours.forward_ms is None:
            continue
        line = (
            f"{operator:20}{shape:>17}{_number(_last(ours), 10, '.3f')}"
            f"{_number(ours.both_roofline or ours.forward_roofline, 6, '.0%')}"
        )
        for peer in ("fla", "xla"):
            theirs = _last(found[peer]) if peer in found else None
            ratio = theirs / _last(ours) if theirs else None
            line += _number(theirs, 9, ".3f") + _number(ratio, 7, ".2f")
        printed.append(line)
    return printed


def _last(row: Row) -> Any:
    return row.both_ms or row.forward_ms


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
