"""Tiles of the kernels that only read and write.

They are bound by memory, so a tile is a run of whole cache lines, about 2048
cells for 4 warps, and the same on every device; no GPU was at hand to time
another. Sequences are cut so that short ones fill a GPU too.
"""

from typing import NamedTuple

import jax.numpy as jnp

_CELLS = 2048


class Tiles(NamedTuple):
    """How a kernel cuts its work.

    Attributes:
      rows: tokens of a tile.
      columns: channels of a tile.
      tiles: tiles of a program, one after another.
      num_warps: warps of a program.
    """

    rows: int
    columns: int
    tiles: int
    num_warps: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def convolution(
    length: int, width: int, dtype, backward: bool = False
) -> Tiles:
    """Tiles of x [B, length, width].

    Backward makes the sums again for every tap: 2048 cells would spill, 1024
    leave a multiprocessor two programs, and 512 four.
    """
    cells = _CELLS // 4 if backward else _CELLS
    # 128 bytes, a cache line, are the least worth reading of a row.
    least = 128 // jnp.dtype(dtype).itemsize
    columns = min(power_of_two(max(width, 16)), least)
    rows = min(cells // columns, power_of_two(max(length, 16)))
    # The sums for the weights are written once a program: 1/16 of x or less,
    # from 512 tokens on, where tiles stand one behind another.
    tiles = max(1, min(256 // rows, length // (16 * rows)))
    return Tiles(rows, columns, tiles, 4)


def plan(length: int, taps: int) -> tuple[int, int]:
    """Tokens of a program that orders them, and places of one that plans.

    The first walks over the whole row, in steps of as many.
    """
    tokens = min(2 * _CELLS, power_of_two(max(length, 16)))
    return tokens, min(_CELLS // power_of_two(taps + 1), tokens)


def norm(width: int, backward: bool = False) -> Tiles:
    """Tiles of rows of `width` cells, each normalised by itself.

    A thread holds 16 cells of a row, of backward's many arrays 8; but with more
    than 16 warps a block has the multiprocessor's registers to itself.
    """
    columns = power_of_two(max(width, 16))
    cells = _CELLS // 2 if backward else _CELLS
    rows = max(1, cells // columns)
    num_warps = 4 * max(1, columns // cells)
    return Tiles(rows, columns, 16, min(num_warps, 16))


def cumsum(chunk_size: int, width: int) -> Tiles:
    """Tiles of chunks of x [..., chunk_size, width]."""
    rows = power_of_two(max(chunk_size, 16))
    columns = max(1, min(_CELLS // rows, power_of_two(width)))
    return Tiles(rows, columns, 1, 4)
