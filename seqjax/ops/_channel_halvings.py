"""Where the score of two tokens stands when a chunk is halved again and again.

Every pair i > j parts at one halving, of which i is in a second half and j in
the first beside it.  The scores of a halving are one block: rows the tokens in
second halves, columns those in first ones.  Scores and blocks are gathered from
each other, both ways: as a scatter, which a gather transposes to, it is slow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def gather(x: jax.Array, axes: int, source: np.ndarray) -> jax.Array:
    """What stands at `source` in the last `axes` axes of x, 0 where it is -1.

    Args:
      x: [..., the axes].
      axes: how many are taken as one flat axis.
      source: places in it, of any shape.

    Returns:
      [..., the shape of source].
    """
    flat = x.reshape(*x.shape[:-axes], -1)
    taken = jnp.take(flat, np.maximum(source, 0).ravel(), axis=-1, mode="clip")
    taken = taken.reshape(*x.shape[:-axes], *source.shape)
    return jnp.where(source >= 0, taken, 0)


@functools.cache
def places(reads: int, writes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each score stands in the blocks, and the reverse; -1 for none.

    Args:
      reads: vectors that read, M.
      writes: vectors that are read, P.
      size: tokens of the chunk, C, a power of two.

    Returns:
      (int32 [P, M, C, C], places in the flat blocks; int32 [log2 C, M C/2,
      P C/2], places in the flat scores [M, C, P, C]).
    """
    levels, half = (size - 1).bit_length(), size // 2
    in_blocks = np.full((writes, reads, size, size), -1, np.int32)
    in_scores = np.full((levels, reads, half, writes, half), -1, np.int32)
    i, j = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    for level in range(levels):
        parted = ((i >> level) ^ (j >> level) == 1) & (i > j)
        rows, columns = i[parted], j[parted]
        low = (1 << level) - 1
        row = (rows >> level + 1 << level) + (rows & low)
        column = (columns >> level + 1 << level) + (columns & low)
        for x in range(reads):
            for y in range(writes):
                block = (level * reads + x) * half + row
                block = (block * writes + y) * half + column
                in_blocks[y, x, rows, columns] = block
                score = (x * size + rows) * writes + y
                in_scores[level, x, row, y, column] = score * size + columns
    return in_blocks, in_scores.reshape(levels, reads * half, writes * half)
