"""Tiles of the kernels of this family, and how work is cut to fill a GPU.

All is settled by shapes and the kind of device, nothing is timed, so that the
same inputs give the same bits.  Tiles are those of `tables`; devices that have
no table there have those of the static chooser (`seqjax_kernels.configs`).  No
GPU has timed either.

Chunks of 64 give warpgroup products, of compute capability 9.0, at least cost
in states.  A result that becomes an operand stands in rows of 16 a warp, so
more than 4 warps would hold the same rows twice.  Products of float32 operands
are three each and need more registers: chunks of 32.
"""

from typing import NamedTuple

from seqjax_kernels import configs
from seqjax_kernels import devices
from seqjax_kernels.decay import probes
from seqjax_kernels.decay import tables


class Tiles(NamedTuple):
    """One launch: tile of the keys, of the values, warps, pipeline stages."""

    key: int
    value: int
    warps: int
    stages: int


class Config(NamedTuple):
    """Choices for one shape.

    Attributes:
      chunk: tokens a chunk, a power of two, at least 16.
      states: tiles of the passes that carry the state.
      walk: tiles of the outputs and of the values' gradients; the key tile is
        walked over.
      keys: tiles of the keys' gradients; the value tile is walked over.
      scores: of scores of key channels' gates, the key tile is walked over.
    """

    chunk: int
    states: Tiles
    walk: Tiles
    keys: Tiles
    scores: Tiles = Tiles(0, 0, 0, 0)  # there are none


def _sizes(*sizes, warps=4, stages=2) -> tuple[Tiles, ...]:
    return tuple(Tiles(key, value, warps, stages) for key, value in sizes)


# Larger tiles read less often, and less work is done twice.
_LARGE = (
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 2),
    Tiles(32, 64, 4, 3),
    *_sizes((32, 64), (32, 32), (16, 32)),
)
_KEYS = (
    *_sizes((64, 64), (32, 64), (32, 32)),
    *_sizes((32, 32), (16, 32), warps=2),
    Tiles(16, 16, 2, 1),
)
_CHANNEL_KEYS = (
    *_sizes((32, 64), (32, 32), (16, 32)),
    *_sizes((16, 32), (16, 16), stages=1),
)
CANDIDATES = dict(
    states=_LARGE,
    walk=_LARGE,
    keys=_KEYS,
    keys_grouped=_KEYS,
    channel_states=_LARGE,
    channel_scores=_LARGE,
    channel_walk=_LARGE,
    channel_keys=_CHANNEL_KEYS,
)


def choose(
    key: int, value: int, chunk: int | None, *, wide: bool, grouped: bool
) -> Config:
    """The configuration of a shape.

    Args:
      key: K.
      value: V.
      chunk: tokens a chunk, or None for the largest with tiles that fit.
      wide: whether operands are float32.
      grouped: whether one program takes several value heads.
    """
    chunk = chunk or chunk_sizes(wide=wide, channels=False)[-1]
    last = "keys_grouped" if grouped else "keys"
    return _config(("states", "walk", last), key, value, chunk, wide)


def choose_channel(
    key: int, value: int, chunk: int | None, *, wide: bool
) -> Config:
    """`choose` for one gate a key channel."""
    chunk = chunk or chunk_sizes(wide=wide, channels=True)[-1]
    names = ("states", "walk", "keys", "scores")
    names = tuple(f"channel_{name}" for name in names)
    return _config(names, key, value, chunk, wide)


def _config(kernels, key, value, chunk, wide) -> Config:
    """Tiles of each kernel, no larger than the shape needs."""
    device = _device()
    operand = "fp32" if wide else "bf16"
    tiles = []
    for kernel in kernels:
        made = configs.choose(
            tables.TABLE,
            configs.Key(kernel, operand, chunk),
            CANDIDATES[kernel],
            probes.program_of,
            device,
        )
        made = made._replace(
            key=min(made.key, _power_of_two(key)),
            value=min(made.value, _power_of_two(value)),
        )
        tiles.append(made)
    return Config(chunk, *tiles)


def keys(arch: int) -> list[configs.Key]:
    """All that tiles are chosen for on a device."""
    found = []
    for kernel in CANDIDATES:
        channels = kernel.startswith("channel")
        for operand in ("bf16", "fp32"):
            wide = operand == "fp32"
            if wide and kernel == "keys_grouped":
                continue  # each value head has a program of its own
            sizes = _chunk_sizes(wide, channels, arch)
            found += [configs.Key(kernel, operand, c) for c in sizes]
    return found


def chunk_sizes(*, wide: bool, channels: bool) -> tuple[int, ...]:
    """Chunk sizes with tiles that fit."""
    return _chunk_sizes(wide, channels, _device().arch)


def _chunk_sizes(wide, channels, arch):
    if channels:
        # The factors of all halvings stand in registers.
        return (16,) if wide else (16, 32)
    return (16, 32, 64) if arch == 90 and not wide else (16, 32)


# A part costs the products of its states twice, so two or three gain nothing.
_LEAST_PARTS, _MOST_PARTS = 4, 32
_CHUNKS_A_PART = 4
# Programs that one multiprocessor should have to hide each other's waits.
_PROGRAMS = 2


def parts(programs: int, chunks: int) -> int:
    """Parts of the sequence that passes over states run at the same time.

    Cut, the pass runs twice: for the map of each part, and from the state that
    the maps before it give.  That pays where few heads leave most of the GPU
    idle and the sequence is long.

    Args:
      programs: of the pass uncut, one a head and tile of its state.
      chunks: of the sequence.

    Returns:
      1, or from 4 to 32.
    """
    count = min(
        _PROGRAMS * _multiprocessors() // max(programs, 1),
        chunks // _CHUNKS_A_PART,
        _MOST_PARTS,
    )
    return count if count >= _LEAST_PARTS else 1


def shares(programs: int, repeat: int) -> int:
    """Programs that share the value heads of one key head.

    As few as fill the GPU: each writes float32 gradients of its own.

    Args:
      programs: with one share.
      repeat: value heads a key head.

    Returns:
      A divisor of `repeat`.
    """
    for count in range(1, repeat):
        filled = programs * count >= _PROGRAMS * _multiprocessors()
        if repeat % count == 0 and filled:
            return count
    return repeat


def _multiprocessors() -> int:
    return _device().multiprocessors


def _device() -> devices.Device:
    """The one that is traced for; an H100 where none is known."""
    try:
        kind, arch = devices.meant()
    except devices.Unsupported:
        kind, arch = "H100", 90
    known = devices.find(kind) or devices.find("H100")
    assert known is not None
    return known._replace(arch=arch)


def _power_of_two(n: int) -> int:
    """The smallest power of two that holds `n`, at least 16."""
    return max(16, 1 << max(n - 1, 0).bit_length())
