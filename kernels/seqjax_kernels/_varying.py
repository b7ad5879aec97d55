"""Mesh axes over which the results of a launch vary, inside `jax.shard_map`."""

import jax


def like(results, arrays) -> tuple[jax.Array, ...]:
    """`results`, varying over every mesh axis that one of `arrays` does.

    Callbacks and custom vmap rules forget it. Outside of `jax.shard_map`, and
    with `check_vma=False`, nothing varies and nothing is done.
    """
    axes = frozenset().union(
        *(_axes(array) for array in arrays if array is not None)
    )
    cast = []
    for result in results:
        missing = tuple(sorted(axes - _axes(result)))
        if missing:
            result = jax.lax.pcast(result, missing, to="varying")
        cast.append(result)
    return tuple(cast)


def _axes(array) -> frozenset:
    return jax.typeof(array).manual_axis_type.varying
