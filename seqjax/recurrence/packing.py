"""One array a message: pytrees of [B, ...] arrays, packed and moved.

A collective costs its latency before its bytes, so a map of several arrays
travels as one.  Everything goes as floats: complex numbers as two, a flag as
one, an integer as two halves of 16 bits, exact in float32 as an id is not.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp


def pack(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Packs a pytree of arrays [B, ...].

    Args:
      tree: pytree of float, complex, int32 and bool arrays.

    Returns:
      (packed [B, W] in the widest float type, the way back from [..., B, W] to
      the pytree with those leading axes).
    """
    leaves, structure = jax.tree.flatten(tree)
    floats = [x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    dtype = jnp.finfo(jnp.result_type(*floats)).dtype if floats else jnp.float32
    parts = [_to_floats(x, dtype) for x in leaves]
    ends, total = [], 0
    for part in parts:
        total += part.shape[1]
        ends.append(total)

    def unpack(packed):
        pieces = jnp.split(packed, ends[:-1], axis=-1)
        return jax.tree.unflatten(
            structure,
            [_from_floats(p, x) for p, x in zip(pieces, leaves, strict=True)],
        )

    return jnp.concatenate(parts, axis=1), unpack


def all_gather(tree: Any, axis_name: str) -> Any:
    """Gathers a pytree of [B, ...] arrays with one collective: [P, B, ...]."""
    packed, unpack = pack(tree)
    return unpack(jax.lax.all_gather(packed, axis_name))


def permute(tree: Any, axis_name: str, pairs: Sequence[tuple[int, int]]) -> Any:
    """Sends a pytree from source to target devices with one collective.

    Args:
      tree: pytree of [B, ...] arrays.
      axis_name: mesh axis.
      pairs: (source, target) device indices.

    Returns:
      What came; zeros on devices that are no target.
    """
    packed, unpack = pack(tree)
    return unpack(jax.lax.ppermute(packed, axis_name, pairs))


def bytes_of(tree: Any) -> int:
    """Bytes of a pytree's message."""
    packed = jax.eval_shape(lambda tree: pack(tree)[0], tree)
    return packed.size * packed.dtype.itemsize


def _to_floats(x, dtype):
    batch = x.shape[0]
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    elif jnp.issubdtype(x.dtype, jnp.integer):
        x = jnp.stack([x >> 16, x & 0xFFFF], axis=-1)
    return x.astype(dtype).reshape(batch, math.prod(x.shape[1:]))


def _from_floats(part, like):
    leading = part.shape[:-2]
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        part = part.reshape(*leading, *like.shape, 2)
        part = jax.lax.complex(part[..., 0], part[..., 1])
    elif jnp.issubdtype(like.dtype, jnp.integer):
        part = part.reshape(*leading, *like.shape, 2).astype(jnp.int32)
        part = (part[..., 0] << 16) | part[..., 1]
    else:
        part = part.reshape(*leading, *like.shape)
    return part.astype(like.dtype)
