"""Agreement between the processes of one job; trivial for a single one."""

import json

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


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
