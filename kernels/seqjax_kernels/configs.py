"""Which configuration of a kernel runs: from a table, else chosen statically.

A family keeps a table per kind of device, checked in.  What is not in it, such
as a device of a compute capability that no table is of, is chosen when a
program is traced: candidates are compiled, from the one that does the least
work on, a second or two each the first time, until one holds its numbers in
registers, fits in shared memory and leaves a multiprocessor enough warps.
Nothing is timed, so the same inputs give the same bits on every run; that the
choice is the fastest was never held against a GPU's clock.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple, TypeVar

from seqjax_kernels import _direct
from seqjax_kernels import devices
from seqjax_kernels import launch
from seqjax_kernels import resources

Config = TypeVar("Config", bound=tuple)
# With fewer at once a multiprocessor waits for memory.
_ENOUGH_WARPS = 8


class Key(NamedTuple):
    """What a configuration is chosen for.

    Attributes:
      kernel: as the family names it.
      operand: of its products, as the family names it.
      chunk: tokens a chunk.
    """

    kernel: str
    operand: str
    chunk: int


def choose(
    table: Mapping[str, Mapping[Key, Any]],
    key: Key,
    candidates: Sequence[Config],
    program_of: Callable[[Key, Config, int], _direct.Program],
    device: devices.Device,
) -> Config:
    """The configuration for a kernel on a device.

    Args:
      table: {kind of device, as in `devices.DEVICES`: {key: configuration}}.
      key: the kernel.
      candidates: in the order of the work they do, the least first.
      program_of: (key, candidate, compute capability) -> what is compiled.
      device: the one that is traced for.

    Returns:
      The table's entry for the kind of device, or for another of its compute
      capability; else `best`.  The interpreter takes the first candidate.

    Raises:
      devices.Unsupported: no candidate fits the device.
    """
    for kind in (device.kind, *table):
        known = devices.find(kind)
        if known is not None and known.arch == device.arch:
            found = table.get(kind, {}).get(key)
            if found is not None:
                return type(candidates[0])(*found)
    if launch.interpreting():
        return candidates[0]
    return best(key, candidates, program_of, device.arch)


def best(
    key: Key,
    candidates: Sequence[Config],
    program_of: Callable[[Key, Config, int], _direct.Program],
    arch: int,
) -> Config:
    """The first candidate with enough warps and nothing spilled.

    If there is none, the one that spills the fewest bytes, and of these the
    first with the most warps.

    Args:
      key: as of `choose`, like all that has its name.
      candidates: in order.
      program_of: what is compiled.
      arch: compute capability.

    Raises:
      devices.Unsupported: none fits.
    """
    ranks = []
    for candidate in candidates:
        spill, warps = _costs(program_of(key, candidate, arch))
        if warps >= _ENOUGH_WARPS and not spill:
            return candidate
        if warps:
            ranks.append((spill, -warps, candidate))
    if not ranks:
        raise devices.Unsupported(
            f"none of {len(candidates)} configurations of {key.kernel} fits"
            f" compute capability {arch / 10}, for {key}; use"
            " implementation='xla'"
        )
    return min(ranks, key=lambda rank: rank[:2])[2]


@functools.cache
def _costs(program: _direct.Program) -> tuple[int, int]:
    """(bytes spilled, warps that a multiprocessor holds at once)."""
    found = resources.of(program)
    warps = resources.blocks_at_once(found, program.arch) * found.warps
    return found.spill, warps
