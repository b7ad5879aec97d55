"""Which part of every batch a process reads, and its way onto the devices.

A device holds some rows of a batch [B, T] and, where time is sharded, a slice
of their tokens.  A process reads the rows of its devices; where a row is spread
over several processes, each of them reads it and hands on its own slice.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.parallel import sharding


class Feed(NamedTuple):
    """One process's part of every batch.

    Attributes:
      sharding: of a batch leaf.
      shape: (B, T).
      index: the process reads rows index * B/count to (index+1) * B/count - 1.
      count: parts of that size in a batch.
    """

    sharding: jax.sharding.NamedSharding
    shape: tuple[int, int]
    index: int
    count: int

    def put(self, leaf: np.ndarray) -> jax.Array:
        """A global array [B, T] from this process's rows [B/count, T]."""
        rows = self.shape[0] // self.count
        if leaf.shape != (rows, self.shape[1]):
            raise ValueError(
                f"a process must give {rows} rows of {self.shape[1]} tokens, "
                f"got {leaf.shape}"
            )

        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(self.shape[0])
            start = self.index * rows
            return leaf[first - start : last - start, index[1]]

        return jax.make_array_from_callback(
            self.shape, self.sharding, of_device
        )


def feed(
    mesh: jax.sharding.Mesh,
    shape: tuple[int, int],
    devices: Collection[Any] | None = None,
) -> Feed:
    """The part of a process in batches of that shape (B, T).

    Args:
      mesh: of the run; its data and fsdp axes divide B, its seq axis T.
      shape: (B, T).
      devices: jax.Devices of the process; None for those of this one.
    """
    where = sharding.batch_sharding(mesh)
    if devices is None:
        devices = where.addressable_devices
    indices = where.devices_indices_map(shape)
    rows = [indices[device][0].indices(shape[0]) for device in devices]
    first = min(start for start, _, _ in rows)
    last = max(stop for _, stop, _ in rows) - 1
    # Batches are cut into equal parts, so that they are the same rows however
    # many processes read them: take the smallest part that holds these.
    for count in range(shape[0], 0, -1):
        size = shape[0] // count
        if shape[0] % count == 0 and first // size == last // size:
            return Feed(where, shape, first // size, count)
    raise AssertionError("one part holds all rows")
