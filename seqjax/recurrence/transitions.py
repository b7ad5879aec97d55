"""Transitions of affine recurrences and their composition.

Maps `S -> A S + B` compose: `(A2, B2) after (A1, B1) = (A2 A1, A2 B1 + B2)`.
Where `A` multiplies the state elementwise, the kinds differ only in how many of
the state's axes the decay has; where it mixes the keys, it is a matrix:

    kind         stored            state           members
    identity     nothing           [B, H, K, V]    linear attention
    scalar       log [B, H]        [B, H, K, V]    retention, simple GLA, SSD
    diagonal     log [B, H, K]     [B, H, K, V]    GLA, HGRN2
    elementwise  log [B, D, N]     [B, D, N]       Mamba-1, RG-LRU, S5
    dense        matrix [B,H,K,K]  [B, H, K, V]    the delta family

A factor of zero (a document border, a gate of -inf) is no number in a sum of
logarithms: beside a large finite sum it would be lost, and -inf - -inf is NaN.
So zeros are counted apart, and the sum stays finite.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any  # a pytree of arrays


class Decay(NamedTuple):
    """A diagonal transition, stored as logarithm and count of zero factors.

    Attributes:
      log: sum of the finite natural-log factors, real or complex, aligned to
        the leading axes of every leaf of the state; None for the identity.
      zeros: int32, how many factors were zero, or bool, whether any was;
        aligned to the leading axes of the state like `log` (and may be
        shorter); None where there are none.
    """

    log: jax.Array | None = None
    zeros: jax.Array | None = None

    def compose(self, earlier: "Decay") -> "Decay":
        """The decay of `earlier` followed by this one: both parts add."""
        return Decay(
            _add(self.log, earlier.log), _add(self.zeros, earlier.zeros)
        )

    def act(self, x: jax.Array) -> jax.Array:
        """Multiplies a state leaf, broadcasting over its trailing axes."""
        if self.log is not None:
            x = align(jnp.exp(self.log), x) * x
        if self.zeros is not None:
            x = jnp.where(align(self.zeros > 0, x), jnp.zeros_like(x), x)
        return x

    def transpose(self) -> "Decay":
        """The transition that cotangents of the state see: the same."""
        return self

    def cut(self, where: jax.Array) -> "Decay":
        """The same with one more factor of zero where `where` is true."""
        zeros = self.zeros
        count = where.astype(jnp.int32 if zeros is None else zeros.dtype)
        if zeros is not None and zeros.ndim > count.ndim:
            count = align(count, zeros)
        elif zeros is not None:
            zeros = align(zeros, count)
        return Decay(self.log, _add(zeros, count))

    def flagged(self) -> "Decay":
        """The same with `zeros` as bool: all that matters of their count."""
        return Decay(self.log, None if self.zeros is None else self.zeros > 0)

    def identity(self) -> "Decay":
        """The identity in the shapes of this one."""
        return jax.tree.map(jnp.zeros_like, self)

    def cotangent(self, state: State, bar: State) -> "Decay":
        """Cotangent of the transition where `act(state)` has cotangent `bar`.

        That of `log` is the sum of `A S * bar`; `zeros` has none.
        """
        if self.log is None:
            return Decay(None, None)
        total = jnp.zeros_like(self.log)
        for s, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(bar), strict=True
        ):
            trailing = tuple(range(total.ndim, s.ndim))
            total += jnp.sum(self.act(s) * b, axis=trailing)
        return Decay(total, None)


class Dense(NamedTuple):
    """A transition that mixes the keys: a product of low-rank updates.

    Attributes:
      matrix: [..., K, K], multiplies every leaf [..., K, V] of the state.
    """

    matrix: jax.Array

    def compose(self, earlier: "Dense") -> "Dense":
        """The transition of `earlier` followed by this one."""
        return Dense(_matmul(self.matrix, earlier.matrix))

    def act(self, x: jax.Array) -> jax.Array:
        """Multiplies a state leaf [..., K, V]."""
        return _matmul(self.matrix, x)

    def transpose(self) -> "Dense":
        """The transition that cotangents of the state see."""
        return Dense(self.matrix.mT)

    def cut(self, where: jax.Array) -> "Dense":
        """Zero where `where` is true; aligned to the leading axes."""
        matrix = self.matrix
        return Dense(jnp.where(align(where, matrix), 0, matrix))

    def flagged(self) -> "Dense":
        """The same: a matrix has its zeros in it."""
        return self

    def identity(self) -> "Dense":
        """The identity in the shape of this one."""
        one = jnp.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)
        return Dense(
            jnp.zeros_like(self.matrix)
            + one.reshape((1,) * (self.matrix.ndim - 2) + one.shape)
        )

    def cotangent(self, state: State, bar: State) -> "Dense":
        """Cotangent of the matrix where `act(state)` has cotangent `bar`."""
        total = jnp.zeros_like(self.matrix)
        for s, b in zip(
            jax.tree.leaves(state), jax.tree.leaves(bar), strict=True
        ):
            total += _matmul(b, s.mT)
        return Dense(total)


Transition = Decay | Dense


class Affine(NamedTuple):
    """The map `S -> transition S + update`; `update` is shaped as the state."""

    transition: Any  # a Transition, or another of the same methods
    update: State

    def apply(self, state: State) -> State:
        """The state after the map: `A S + B`."""
        return jax.tree.map(
            lambda s, b: self.transition.act(s) + b, state, self.update
        )

    def compose(self, earlier: "Affine") -> "Affine":
        """This map after `earlier`, of one kind: `(A2 A1, A2 B1 + B2)`."""
        before: Any = earlier.transition
        return Affine(
            self.transition.compose(before),
            jax.tree.map(
                lambda b2, b1: self.transition.act(b1) + b2,
                self.update,
                earlier.update,
            ),
        )

    def identity(self) -> "Affine":
        """The map that changes nothing, in the shapes of this one."""
        return Affine(
            self.transition.identity(),
            jax.tree.map(jnp.zeros_like, self.update),
        )

    def reset(self, where: jax.Array) -> "Affine":
        """The map that first sets the state to zero where `where` is true."""
        return self._replace(transition=self.transition.cut(where))

    def forget(self, state: State, where: jax.Array) -> State:
        """The state, zero where `where` is true."""
        return forget(state, where)

    def linear(self, state: State, cut: jax.Array | None) -> Transition:
        """The transition that a small change of the state sees."""
        del state  # the same at every state
        return self.transition if cut is None else self.transition.cut(cut)

    def linears(
        self, maps: "Affine", initial: State, starts: jax.Array | None
    ) -> Transition:
        """`linear` of P maps in a row, from the state in front of all."""
        del initial
        if starts is None:
            return maps.transition
        return jax.vmap(lambda one, cut: one.linear(None, cut))(maps, starts)

    def back(self, linear: Transition, bar: State) -> "Affine":
        """The map of cotangents, `bar` being that of the state."""
        return Affine(linear.transpose(), bar)

    def cotangent(self, state: State, bar: State) -> "Affine":
        """Cotangent of the map where `apply(state)` has cotangent `bar`."""
        return Affine(self.transition.cotangent(state, bar), bar)

    def kept(self) -> "Affine":
        """What `linear` and `cotangent` need of the map."""
        return self._replace(update=None)


def align(x: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes of length one until `x` has the rank of `like`."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def forget(state: State, where: jax.Array) -> State:
    """The state, zero where `where` [B] is true."""
    return jax.tree.map(
        lambda s: jnp.where(align(where, s), jnp.zeros_like(s), s), state
    )


def compose(later: Affine, earlier: Affine) -> Affine:
    """`later` after `earlier`, of one kind: `(A2 A1, A2 B1 + B2)`."""
    return later.compose(earlier)


def apply(affine: Affine, state: State) -> State:
    """The state after the map: `A S + B`."""
    return affine.apply(state)


def identity_map(like: Affine) -> Affine:
    """The map that changes nothing, in the shapes of `like`."""
    return like.identity()


def reset(affine: Affine, where: jax.Array) -> Affine:
    """Cuts the past off in front of the map wherever `where` is true.

    Args:
      affine: a map.
      where: bool, aligned to the leading axes of the state.

    Returns:
      The map that first sets the state to zero: `S -> B` where cut.
    """
    return affine.reset(where)


# Far below the logarithm of any positive float64, -745: exp is exactly 0, and
# sums of a few such gates would overflow.
_VANISHED = -1e30


def vanishes(log_decay: jax.Array) -> jax.Array:
    """Where a natural-log gate is a factor of exactly 0: bool."""
    return log_decay.real < _VANISHED


def decay_of(log_decay: jax.Array) -> Decay:
    """The transition of natural-log gates of any magnitude, -inf included.

    Args:
      log_decay: real or complex, real part <= 0.

    Returns:
      A `Decay` whose `log` is finite; the gradient of a -inf gate is 0.
    """
    dead = vanishes(log_decay)
    return Decay(
        jnp.where(dead, jnp.zeros_like(log_decay), log_decay),
        dead.astype(jnp.int32),
    )


def _add(x, y):
    if x is None or y is None:
        return y if x is None else x
    return x + y


def _matmul(x, y):
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
