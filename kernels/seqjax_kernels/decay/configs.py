"""Tiles of the kernels of this family."""

from typing import NamedTuple


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


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that holds `n` and `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def choose(key: int, value: int, chunk: int | None, wide: bool) -> Config:
    """Tiles for K and V; `wide` where products are of float32 operands."""
    chunk = chunk or (32 if wide else 64)
    block_k, block_v = power_of_two(key), power_of_two(value)
    return Config(
        chunk,
        Tiles(min(block_k, 64), min(block_v, 64), 4, 3),
        Tiles(min(block_k, 64), min(block_v, 64), 4, 3),
        Tiles(min(block_k, 64), min(block_v, 64), 4, 3),
        Tiles(min(block_k, 64), min(block_v, 64), 8, 2),
    )


def parts(problem) -> int:
    """Parts into which the pass over chunks is cut; 1 where it is whole."""
    return FORCED_PARTS or 1


def shares(problem) -> int:
    """Programs that share the value heads of one key head."""
    return FORCED_SHARES or 1


FORCED_PARTS = FORCED_SHARES = None


def chunk_sizes(wide: bool) -> tuple[int, ...]:
    """Chunk sizes with tiles that fit, by operand."""
    return (16, 32) if wide else (16, 32, 64)
