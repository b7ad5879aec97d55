"""Leaves that are split over a mesh, seen from inside `jax.shard_map`.

A device holds its shard of a large parameter and asks for the whole where it is
used (`gather`); the derivative of that is a reduce-scatter, which leaves every
device the summed gradient of its own shard.  What no axis splits is summed at
the end (`total`).
"""

from collections.abc import Collection
from typing import Any

import jax

P = jax.sharding.PartitionSpec


def gather(tree: Any, specs: Any) -> Any:
    """The whole leaves, from this device's shards.

    Args:
      tree: shards of arrays.
      specs: a tree of PartitionSpecs alike, one mesh axis or None an axis.

    Returns:
      The whole arrays; one all-gather for each axis that splits a leaf.
    """
    return jax.tree.map(_gather, tree, specs)


def _gather(leaf: jax.Array, spec: P) -> jax.Array:
    for axis, name in enumerate(spec):
        if name is not None:
            leaf = jax.lax.all_gather(leaf, name, axis=axis, tiled=True)
    return leaf


def total(tree: Any, specs: Any, axes: Collection[str]) -> Any:
    """Sums leaves over the mesh axes that do not split them.

    Args:
      tree: arrays, each different on every device.
      specs: a tree of PartitionSpecs alike.
      axes: all axes of the mesh.
    """

    def one(leaf: jax.Array, spec: P) -> jax.Array:
        left = tuple(axis for axis in axes if axis not in spec)
        return jax.lax.psum(leaf, left) if left else leaf

    return jax.tree.map(one, tree, specs)
