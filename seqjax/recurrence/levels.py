"""Transitions of states that stand on levels: the binary blocks of the past.

Going on from one position to a later one, all levels up to some `upto` become
one, while the whole state decays:

    (A S)[l] = a sum of S[m] over m with max(m, upto) = l

Two in a row merge up to the larger of both, so these transitions compose; the
transposed one gives level l what stood on level max(l, upto).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import transitions


def merge(state: jax.Array, upto: jax.Array) -> jax.Array:
    """Moves levels 0 .. upto [B] of a state [B, H, L, K, V] to level `upto`."""
    low, here = _masks(state, upto)
    total = jnp.sum(jnp.where(low, state, 0), axis=2, keepdims=True)
    return jnp.where(here, total, jnp.where(low, 0, state))


def spread(state: jax.Array, upto: jax.Array) -> jax.Array:
    """The transpose of `merge`: levels 0 .. upto get what `upto` had."""
    low, here = _masks(state, upto)
    total = jnp.sum(jnp.where(here, state, 0), axis=2, keepdims=True)
    return jnp.where(low, total, state)


def _masks(state, upto):
    index = jnp.arange(state.shape[2])[None]
    low, here = index <= upto[:, None], index == upto[:, None]
    return low[:, None, :, None, None], here[:, None, :, None, None]


class Merge(NamedTuple):
    """Levels merge and decay.

    Attributes:
      decay: one factor a head, arrays [B, H] (zeros may be [B]).
      upto: int32 [B], the level up to which all become one, 0 for none; None
        in a cotangent.
    """

    decay: transitions.Decay
    upto: Any

    def compose(self, earlier: "Merge") -> "Merge":
        """The transition of `earlier` followed by this one."""
        return Merge(
            self.decay.compose(earlier.decay),
            jnp.maximum(self.upto, earlier.upto),
        )

    def act(self, x: jax.Array) -> jax.Array:
        """The state [B, H, L, K, V] on its new levels."""
        return self.decay.act(merge(x, self.upto))

    def transpose(self) -> "Spread":
        """The transition that cotangents of the state see."""
        return Spread(self.decay, self.upto)

    def cut(self, where: jax.Array) -> "Merge":
        """Zero where `where` is true."""
        return Merge(self.decay.cut(where), self.upto)

    def flagged(self) -> "Merge":
        """The same with zeros as a flag."""
        return Merge(self.decay.flagged(), self.upto)

    def identity(self) -> "Merge":
        """The identity in the shapes of this one."""
        return Merge(self.decay.identity(), jnp.zeros_like(self.upto))

    def cotangent(self, state: jax.Array, bar: jax.Array) -> "Merge":
        """Cotangent where `act(state)` has cotangent `bar`."""
        return Merge(self.decay.cotangent(merge(state, self.upto), bar), None)


class Spread(NamedTuple):
    """The transpose of `Merge`, of the same attributes."""

    decay: transitions.Decay
    upto: jax.Array

    def compose(self, earlier: "Spread") -> "Spread":
        """The transition of `earlier` followed by this one."""
        return Spread(
            self.decay.compose(earlier.decay),
            jnp.maximum(self.upto, earlier.upto),
        )

    def act(self, x: jax.Array) -> jax.Array:
        """A cotangent [B, H, L, K, V] on the levels before."""
        return self.decay.act(spread(x, self.upto))

    def cut(self, where: jax.Array) -> "Spread":
        """Zero where `where` is true."""
        return Spread(self.decay.cut(where), self.upto)

    def identity(self) -> "Spread":
        """The identity in the shapes of this one."""
        return Spread(self.decay.identity(), jnp.zeros_like(self.upto))
