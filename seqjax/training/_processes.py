"""Agreement between the processes of one job; trivial for a single one."""

import functools
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def is_first() -> bool:
    """Whether this is the process that writes what a job has once."""
    return jax.process_index() == 0


def count() -> int:
    """Number of processes of the job."""
    return jax.process_count()


def gather_json(value: dict) -> list[dict]:
    """The value of every process, in order, in every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(text.size)))
    padded = np.pad(text, (0, int(sizes.max()) - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(rows, sizes, strict=True)
    ]


def where_true(flag: bool) -> list[int]:
    """Indices of the processes whose flag is set, in every process."""
    if jax.process_count() == 1:
        return [0] if flag else []
    flags = multihost_utils.process_allgather(np.int32(flag))
    return np.flatnonzero(flags).tolist()


class Lookout:
    """Whether something is so in any process, asked again and again.

    An answer is that of the question before, so that no process waits for the
    others, nor for what its devices still compute: it is there already.
    """

    def __init__(self):
        """Has not been asked."""
        self._before: jax.Array | None = None

    def ask(self, flag: bool) -> bool:
        """Whether it was so in any process when it was asked before.

        All processes ask at the same places, and get the same answer; a
        process alone gets its own at once.
        """
        if jax.process_count() == 1:
            return flag
        before, self._before = self._before, _any(flag)
        return before is not None and bool(before)


def _any(flag: bool) -> jax.Array:
    """The launched maximum over the processes, readable in each."""
    devices = np.array(
        sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    )
    mesh = jax.sharding.Mesh(
        devices.reshape(jax.process_count(), -1), ("process", "device")
    )
    spec = jax.sharding.PartitionSpec
    local = jax.make_array_from_process_local_data(
        jax.sharding.NamedSharding(mesh, spec("process")),
        np.array([flag], np.int32),
    )
    return _maximum(jax.sharding.NamedSharding(mesh, spec()))(local)


@functools.cache
def _maximum(where: jax.sharding.Sharding) -> Any:
    return jax.jit(lambda flags: flags.max(), out_shardings=where)


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
