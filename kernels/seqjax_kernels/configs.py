"""Which configuration of a kernel runs: from a table, else chosen statically.

A family keeps a table per kind of device, checked in. For a shape that is near
none of its entries the candidates are compiled, which takes about a second each
the first time, and ranked by what they take of a multiprocessor. Nothing is
timed at run time: the same inputs give the same bits on every run. The ranking
was never held against a GPU's clock.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple, TypeVar

from seqjax_kernels import _direct
from seqjax_kernels import devices
from seqjax_kernels import launch
from seqjax_kernels import resources

Config = TypeVar("Config")
# With fewer warps at once a multiprocessor waits for memory.
_ENOUGH_WARPS = 8
# An entry stands for shapes up to this factor away, in heads and in length.
_NEAR = 4


class Key(NamedTuple):
    """What a configuration is chosen for.

    Attributes:
      operator: as the family names it, with its direction.
      dtype: of what is multiplied.
      key: K.
      value: V.
      heads: B·H, sequences that run side by side.
      length: T.
    """

    operator: str
    dtype: str
    key: int
    value: int
    heads: int
    length: int


def choose(
    table: Mapping[str, Mapping[Key, Config]],
    key: Key,
    candidates: Sequence[Config],
    program_of: Callable[[Config, int], _direct.Program],
    blocks_of: Callable[[Config], int],
) -> Config:
    """The configuration for a shape on the device that is traced for.

    Args:
      table: {kind of device, as in `devices.DEVICES`: {key: configuration}}.
      key: the shape.
      candidates: the best guess first, which the interpreter takes.
      program_of: (candidate, compute capability) -> what is compiled.
      blocks_of: programs of the launch under a candidate.

    Returns:
      The entry of the nearest key, else the best candidate.

    Raises:
      devices.Unsupported: no candidate fits the device.
    """
    if launch.interpreting():
        return candidates[0]
    kind, arch = devices.meant()
    device = devices.find(kind)
    found = nearest(table.get(device.kind, {}), key) if device else None
    if found is not None:
        return found
    programs = tuple(program_of(candidate, arch) for candidate in candidates)
    blocks = tuple(blocks_of(candidate) for candidate in candidates)
    multiprocessors = device.multiprocessors if device else 1
    return candidates[_best(programs, blocks, multiprocessors, key)]


def nearest(entries: Mapping[Key, Config], key: Key) -> Config | None:
    """The entry of the same operator, dtype, K and V nearest in size.

    Args:
      entries: configurations of one device.
      key: the shape.

    Returns:
      The configuration, or None if all are more than a factor of 4 away.
    """
    best, found = math.log(_NEAR) + 1e-9, None
    for entry, config in entries.items():
        if entry[:4] != key[:4]:
            continue
        distance = max(
            abs(math.log(max(a, 1) / max(b, 1)))
            for a, b in zip(entry[4:], key[4:], strict=True)
        )
        # Of two as near the first stands.
        if distance < best:
            best, found = distance, config
    return found


def cost(
    found: resources.Resources, arch: int, blocks: int, multiprocessors: int
) -> float:
    """A launch's time in units of what one program's share of the work takes.

    Programs run in waves; a wave with few warps on a multiprocessor does not
    use it fully. Infinite for what does not fit or spills.
    """
    at_once = resources.blocks_at_once(found, arch)
    if at_once < 1 or found.spill:
        return math.inf
    # The last wave may leave multiprocessors with fewer programs.
    share = -(-blocks // multiprocessors)
    waves = -(-share // at_once)
    warps = min(at_once, share) * found.warps
    idle = max(1.0, _ENOUGH_WARPS / warps)
    return waves * min(at_once, share) * idle / max(blocks, 1)


@functools.cache
def _best(
    programs: tuple[_direct.Program, ...],
    blocks: tuple[int, ...],
    multiprocessors: int,
    key: Key,
) -> int:
    costs = [
        cost(resources.of(program), program.arch, count, multiprocessors)
        for program, count in zip(programs, blocks, strict=True)
    ]
    if math.inf == min(costs):
        raise devices.Unsupported(
            f"none of {len(programs)} configurations of {key.operator} fits"
            f" compute capability {programs[0].arch / 10} without spilling, for"
            f" {key}; use implementation='xla'"
        )
    return costs.index(min(costs))


def described(table: Mapping[str, Mapping[Key, Any]]) -> list[str]:
    """A line an entry, for a page or a log."""
    return [
        f"{kind}: {' '.join(map(str, key))} -> {config}"
        for kind, entries in table.items()
        for key, config in entries.items()
    ]
