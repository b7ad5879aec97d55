"""Which mesh axes an array varies over inside `jax.shard_map`.

With `check_vma=True` JAX tracks for every value along which mesh axes it
differs between devices, and loops refuse a carry that starts replicated and
becomes varying.  A custom derivative also must return cotangents that vary like
its inputs.  Casting all inputs to the union once, outside, settles both: the
transpose of that cast is the sum over devices a replicated input needs.
"""

from typing import TypeVar

import jax

Tree = TypeVar("Tree")


def varying_axes(tree) -> frozenset[str]:
    """The mesh axes along which any leaf of `tree` varies."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(tree):
        axes = axes | jax.typeof(leaf).manual_axis_type.varying
    return axes


def match_varying(tree: Tree, axes) -> Tree:
    """Casts every leaf to vary over all of `axes`; a no-op where it does.

    Args:
      tree: pytree of arrays, None leaves are kept.
      axes: mesh axis names.

    Returns:
      The same values.
    """

    def cast(leaf):
        missing = set(axes) - jax.typeof(leaf).manual_axis_type.varying
        if not missing:
            return leaf
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying")

    return jax.tree.map(cast, tree)
