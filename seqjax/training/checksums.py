"""A 32-bit checksum of every leaf of a state, the same on every mesh.

    v_i = mix(word_i * odd(i)),   checksum = sum_i v_i  mod 2^32

Words are the bits of the array, never its values, so that NaNs and signed
zeros count. i is the index in the whole array and the sum wraps, so sharding
and order of summation do not matter. Multiplying by an odd number and xoring
with a right shift are both invertible: a change within one word always
changes its v_i and therefore the sum. The mixing after the product keeps
pairs of flips of the same high bit from cancelling. Other damage is missed
with probability 2^-32. Cost: one pass over the state, fused by the compiler.
"""

from collections.abc import Mapping
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def leaf_checksums(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
    """Checksum of each array, computed where the array lies.

    Args:
      leaves: name -> array of any shape, sharding and dtype except typed PRNG
        keys (pass their key data).

    Returns:
      name -> integer in [0, 2^32); 0 for an empty array.

    Raises:
      ValueError: for a dtype without a bit pattern, naming the leaf.
    """
    for name, leaf in leaves.items():
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(
                f"state leaf {name!r} has dtype {leaf.dtype}, which has no "
                "plain bits; pass jax.random.key_data(key)"
            )
    # One compilation per set of devices: a step counter that was never put on
    # the mesh cannot enter one computation with arrays that were.
    groups: dict[frozenset, dict[str, jax.Array]] = {}
    for name, leaf in leaves.items():
        devices = frozenset(leaf.sharding.device_set)
        groups.setdefault(devices, {})[name] = leaf
    results: dict[str, jax.Array] = {}
    for group in groups.values():
        results |= _checksum_tree(group)
    return {name: int(results[name]) for name in leaves}


@jax.jit
def _checksum_tree(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(leaf) for name, leaf in leaves.items()}


@jax.jit  # within the other: traced once for all leaves of a shape
def _checksum(x: jax.Array) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    if x.size == 0:
        return total
    for part, words in enumerate(_words(x)):
        index = _linear_index(words.shape)
        weight = _mix(index + np.uint32(0x9E3779B9 * (part + 1) % 2**32))
        v = _mix(words * (weight | np.uint32(1)))
        total = total + jnp.sum(v, dtype=jnp.uint32)
    return total


def _words(x: jax.Array) -> list[jax.Array]:
    """The bits of x as one uint32 array, or several for wide dtypes."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return [*_words(lax.real(x)), *_words(lax.imag(x))]
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4:
        # Sub-byte integers have no bitcast to whole bytes; conversion of an
        # integer to a wider one loses nothing.
        return [x.astype(jnp.int32).astype(jnp.uint32)]
    size = x.dtype.itemsize
    if size == 8:
        pairs = lax.bitcast_convert_type(x, jnp.uint32)
        return [pairs[..., 0], pairs[..., 1]]
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
    return [lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)]


def _linear_index(shape: tuple[int, ...]) -> jax.Array:
    """Row-major index modulo 2^32, built without a reshape.

    A reshape of a sharded array would move data between devices.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


def _mix(x: jax.Array) -> jax.Array:
    """An invertible scrambling of uint32 words."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
