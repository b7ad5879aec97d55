"""Exclusive prefix of affine maps: the state that enters each of them."""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax.recurrence import transitions

METHODS = ("sequential", "associative")


def exclusive_prefix(
    maps: transitions.Affine,
    initial: Any,
    *,
    method: str = "sequential",
    reverse: bool = False,
) -> tuple[Any, Any]:
    """States in front of each of N maps, and the one behind all of them.

    Args:
      maps: `Affine` whose arrays have a leading axis N, in order of time.
      initial: state in front of the first map (the last one if `reverse`).
      method: "sequential" applies the maps one by one (least work and memory);
        "associative" composes them in log2(N) levels (least depth).
      reverse: walk from the last map to the first, as cotangents do.

    Returns:
      (before, final): `before` has the leading axis N, entry n being the state
      that map n is applied to; `final` is the state after all maps.
    """
    if method == "sequential":

        def step(state, affine):
            return transitions.apply(affine, state), state

        final, before = jax.lax.scan(step, initial, maps, reverse=reverse)
        return before, final
    if method == "associative":
        inclusive = jax.lax.associative_scan(
            lambda earlier, later: transitions.compose(later, earlier),
            maps,
            reverse=reverse,
        )
        after = jax.vmap(transitions.apply, in_axes=(0, None))(
            inclusive, initial
        )
        if reverse:
            shift = lambda a, s: jnp.concatenate([a[1:], s[None]])  # noqa: E731
            final = jax.tree.map(lambda a: a[0], after)
        else:
            shift = lambda a, s: jnp.concatenate([s[None], a[:-1]])  # noqa: E731
            final = jax.tree.map(lambda a: a[-1], after)
        return jax.tree.map(shift, after, initial), final
    raise ValueError(
        f"method must be one of {', '.join(METHODS)}, got {method!r}"
    )
