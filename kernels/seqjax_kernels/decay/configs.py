"""Tiles of the kernels of this family, and how work is cut to fill a GPU.

All is settled by shapes and the kind of device, nothing is timed, so that the
same inputs give the same bits.  The tiles are the largest without spilled
registers in a static sweep for compute capability 9.0; no GPU has timed them.

Chunks of 64 give warpgroup products at least cost in states.  A result that
becomes an operand stands in rows of 16 a warp, so more than 4 warps would hold
the same rows twice.  Products of float32 operands are three each and need three
times the registers: chunks of 32, tiles of 16.
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


# Chunk, and the tiles of `Config`: bfloat16 operands, with one value head a
# key head and with several; float32 operands.
_BFLOAT16 = Config(
    64,
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(64, 64, 4, 2),
)
_GROUPED = _BFLOAT16._replace(keys=Tiles(32, 32, 4, 2))
_FLOAT32 = Config(
    32,
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(32, 64, 4, 2),
    Tiles(16, 16, 2, 1),
)


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
    else:
        config = _GROUPED if grouped else _BFLOAT16
    return _cut(config, key, value, chunk)


def _cut(config, key, value, chunk):
    """Tiles no larger than the shape needs."""

    def cut(tiles):
        return tiles._replace(
            key=min(tiles.key, _power_of_two(key)),
            value=min(tiles.value, _power_of_two(value)),
        )

    return Config(chunk or config.chunk, *(cut(t) for t in config[1:]))


_CHANNEL_BFLOAT16 = _BFLOAT16._replace(
    states=Tiles(32, 64, 4, 2),
    outputs=Tiles(32, 64, 4, 2),
    values=Tiles(32, 64, 4, 2),
    keys=Tiles(16, 32, 4, 2),
)
_CHANNEL_FLOAT32 = _FLOAT32._replace(chunk=16)


def choose_channel(
    key: int, value: int, chunk: int | None, *, wide: bool
) -> Config:
    """`choose` for one gate a key channel; `outputs` also makes the scores."""
    config = _CHANNEL_FLOAT32 if wide else _CHANNEL_BFLOAT16
    return _cut(config, key, value, chunk)


def chunk_sizes(wide: bool) -> tuple[int, ...]:
    """Chunk sizes with tiles that fit."""
    return (16, 32) if wide else (16, 32, 64)


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
    """Of the device that is traced for; of an H100 where none is known."""
    try:
        known = devices.find(devices.meant()[0])
    except devices.Unsupported:
        known = None
    return known.multiprocessors if known else 132


def _power_of_two(n: int) -> int:
    """The smallest power of two that holds `n`, at least 16."""
    return max(16, 1 << max(n - 1, 0).bit_length())
