"""Orders that depend on a seed alone.

The generator is splitmix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators"), written out here: numpy and grain may change
their streams from one release to the next, and a run that resumes after an
upgrade must go on in its own order.
"""

import hashlib

import numpy as np

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(key: int, n: int) -> np.ndarray:
    """The first n numbers of stream `key`: uint64 [n]."""
    steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return _mix(steps + np.uint64(key & _MASK))


def fold(key: int, value: int) -> int:
    """A new stream out of a stream and a number."""
    mixed = _mix(np.asarray([(key ^ value) & _MASK], np.uint64))
    return int(draws(int(mixed[0]), 1)[0])


def name_key(name: str) -> int:
    """A stream out of a name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little")


def permutation(n: int, seed: int, epoch: int, what: str) -> np.ndarray:
    """The order of n things in one epoch: int64 [n].

    `what` names the things, so that two orders of one epoch are unrelated.
    """
    key = fold(fold(name_key(what), seed), epoch)
    return np.argsort(draws(key, n), kind="stable")
