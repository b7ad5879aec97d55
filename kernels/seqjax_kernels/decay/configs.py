"""Tiles of the kernels of this family, and how work is cut to fill a GPU.

All is settled by shapes and the kind of device, nothing is timed, so that the
same inputs give the same bits.  The tiles are the largest without spilled
registers in a static sweep; no GPU has timed them.

Chunks of 64 give warpgroup products at least cost in states.  A result that
becomes an operand stands in rows of 16 a warp, so more than 4 warps would hold
the same rows twice.  Products of float32 operands are three each and need more
registers: chunks of 32, tiles of 16.
"""

from typing import NamedTuple

from seqjax_kernels import devices


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
      outputs: tiles of the outputs; the key tile is walked over.
      values: tiles of the values' gradients; the key tile is walked over.
      keys: tiles of the keys' gradients; the value tile is walked over.
    """

    chunk: int
    states: Tiles
    outputs: Tiles
    values: Tiles
    keys: Tiles


# With warpgroup products, compute capability 9.0: chunks of 64.
_BFLOAT16 = Config(
    64,
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 2),
)
# Programs that take several value heads keep sums over them in registers; here
# 4 bytes are spilled, for half as many states as chunks of 32; not timed.
_GROUPED = _BFLOAT16._replace(keys=Tiles(32, 32, 4, 2))
# Elsewhere, and for smaller chunks.
_SMALL = Config(32, *_BFLOAT16[1:4], Tiles(32, 32, 2, 2))
_SMALL_GROUPED = _SMALL._replace(keys=Tiles(16, 32, 2, 2))
_FLOAT32 = Config(
    32,
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(16, 16, 2, 1),
)
# One gate a key channel: the factors of all halvings stand in registers.
_CHANNEL = Config(
    32,
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(16, 32, 4, 1),
)
_CHANNEL_FLOAT32 = _FLOAT32._replace(chunk=16, keys=Tiles(16, 16, 4, 1))


def choose(
    key: int, value: int, chunk: int | None, *, wide: bool, grouped: bool
) -> Config:
    """The configuration of a shape.

    Args:
      key: K.
      value: V.
      chunk: tokens a chunk, or None for the table's.
      wide: whether operands are float32.
      grouped: whether one program takes several value heads.
    """
    if wide:
        config = _FLOAT32
    elif (chunk or 64) >= 64 and _arch() == 90:
        config = _GROUPED if grouped else _BFLOAT16
    else:
        config = _SMALL_GROUPED if grouped else _SMALL
    return _cut(config, key, value, chunk)


def _cut(config, key, value, chunk):
    """Tiles no larger than the shape needs."""

    def cut(tiles):
        return tiles._replace(
            key=min(tiles.key, _power_of_two(key)),
            value=min(tiles.value, _power_of_two(value)),
        )

    return Config(chunk or config.chunk, *(cut(t) for t in config[1:]))


def choose_channel(
    key: int, value: int, chunk: int | None, *, wide: bool
) -> Config:
    """`choose` for one gate a key channel; `outputs` also makes the scores."""
    config = _CHANNEL_FLOAT32 if wide else _CHANNEL
    return _cut(config, key, value, chunk)


def chunk_sizes(*, wide: bool, channels: bool) -> tuple[int, ...]:
    """Chunk sizes with tiles that fit."""
    if channels:
        return (16,) if wide else (16, 32)
    return (16, 32, 64) if _arch() == 90 and not wide else (16, 32)


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


def _arch() -> int:
    return _device().arch


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
