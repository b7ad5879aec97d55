"""Checks of what a caller of generation passes, with the way out."""

import math
import numbers
from typing import Any

import jax
from jax import core
import jax.numpy as jnp


def check_whole(name: str, value: Any, optional: bool = False) -> None:
    """Requires an int of at least 1 (or None, where optional)."""
    if optional and value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or value < 1
    ):
        raise ValueError(
            f"{name} must be an int of at least 1{_or_none(optional)}, got "
            f"{value!r}"
        )


def check_number(
    name: str, value: Any, accepted: str, *, low: float, high: float
) -> None:
    """Requires a finite Python number from low to high."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= float(value) <= high
    ):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")


def check_key(key: Any, temperature: float) -> None:
    """Requires one random key where there is something to draw."""
    if key is None:
        if temperature == 0:
            return
        raise ValueError(
            f"key must be a random key at temperature {temperature}, got "
            f"None; pass jax.random.key(seed), or temperature 0"
        )
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    # Raw keys, of jax.random.PRNGKey, are uint32 vectors.
    if not (typed and shape == ()) and not (
        dtype == jnp.uint32 and len(shape or ()) == 1
    ):
        came = repr(key) if dtype is None else f"{dtype} {list(shape or ())}"
        raise ValueError(
            f"key must be one random key, got {came}; pass jax.random.key(seed)"
        )


def check_alive(cache: Any) -> None:
    """Refuses a cache that an earlier call was given."""
    for leaf in jax.tree.leaves(cache):
        if (
            isinstance(leaf, jax.Array)
            and not isinstance(leaf, core.Tracer)
            and leaf.is_deleted()
        ):
            raise ValueError(
                "cache was given to an earlier call, which wrote over it; go "
                "on with the cache that call returned, or pass a copy, "
                "jax.tree.map(jnp.copy, cache)"
            )


def _or_none(optional: bool) -> str:
    return " or None" if optional else ""
