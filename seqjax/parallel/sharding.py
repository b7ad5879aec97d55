"""Sharding rules: which axis of which leaf goes to which mesh axis.

The rules are applied to a tree of shapes by path, from outside; modules know
nothing of the mesh.  The batch is split over data and fsdp and its sequences
over seq; a large leaf is split over fsdp along its largest divisible axis;
everything else is replicated.
"""

import dataclasses
import math
import re
from typing import Any

import jax

from seqjax.parallel import mesh as mesh_lib

P = jax.sharding.PartitionSpec


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Sharding of a state tree by path.

    Attributes:
      min_size: leaves with fewer elements are replicated; splitting them
        costs a collective and saves nothing.
      overrides: (pattern, axes) pairs.  The first pattern that
        ``re.search`` finds in a leaf's path ("params/block_0/mlp/up/kernel")
        decides: axes names a mesh axis or None for each axis of the leaf.
    """

    min_size: int = 2**14
    overrides: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def spec(self, path: str, shape: tuple[int, ...], fsdp: int) -> P:
        """The PartitionSpec of one leaf on a mesh with that fsdp size."""
        for pattern, axes in self.overrides:
            if re.search(pattern, path):
                if len(axes) != len(shape):
                    raise ValueError(
                        f"sharding override {pattern!r} names {len(axes)} axes "
                        f"{axes}, but {path} has shape {shape}"
                    )
                return P(*axes)
        if fsdp == 1 or math.prod(shape) < self.min_size:
            return P()
        divisible = [size if size % fsdp == 0 else 0 for size in shape]
        if not any(divisible):
            return P()
        axis = divisible.index(max(divisible))
        return P(*(None,) * axis, "fsdp")


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "a/b/0/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(
    tree: Any, mesh: jax.sharding.Mesh, rules: ShardingRules
) -> Any:
    """NamedShardings for a tree of arrays or ShapeDtypeStructs."""
    fsdp = mesh.shape["fsdp"]

    def one(path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
        spec = rules.spec(path_name(path), leaf.shape, fsdp)
        return jax.sharding.NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """The sharding of a batch leaf [B, T]: data and fsdp, and seq."""
    spec = P(mesh_lib.BATCH_AXES, mesh_lib.SEQUENCE_AXIS)
    return jax.sharding.NamedSharding(mesh, spec)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """The sharding of a scalar or a small leaf: a copy on each device."""
    return jax.sharding.NamedSharding(mesh, P())


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the global batch is split."""
    return math.prod(mesh.shape[axis] for axis in mesh_lib.BATCH_AXES)
