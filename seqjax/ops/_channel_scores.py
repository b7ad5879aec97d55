"""Scores of several reading and several written vectors under channel gates.

    A_ij = sum_k x_ik y_jk D_ij,k    D_ij,k = product of exp(g_m,k), j < m <= i

As in `_channel_pairs`, a chunk is halved again and again and every pair of
tokens parts at one halving, where D_ij = enter_i leave_j with factors in
[0, 1].  Here every factor is one exponential of a sum of gates, all sums being
one product with a constant matrix of zeros and ones: a token that is not in a
sum adds exactly nothing to it, so a gate of -1e4 leaves its neighbours alone.
All vectors that read stand beside all that are read in one product a halving.

It takes log2 C + 2 exponentials a token and channel where the ladder of
`_channel_decays` takes one, and a tenth of its operations on arrays, each of
which costs tens of microseconds on a CPU before it has done anything.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import recurrence
from seqjax.ops import _channel_halvings

# Finite, so that 0 times it is 0; no sum over a chunk overflows, and no finite
# gate that it replaces differs from it: their exponential is 0.
_VANISHED = -1e30


class Pairs(NamedTuple):
    """A chunk of C tokens, L = log2 C halvings, M reads, P writes.

    Attributes:
      factors: [..., L C + 2 C, K] in [0, 1]: enter and leave of the halvings,
        L C/2 rows each; head, from in front of the chunk through each token;
        tail, from behind each token through the end.
      x_halves: [..., L, M C/2, K], x * enter in the second halves, or None.
      y_halves: [..., L, P C/2, K], y * leave in the first halves.
    """

    factors: jax.Array
    x_halves: Any
    y_halves: jax.Array

    @property
    def head(self) -> jax.Array:
        """[..., C, K]."""
        return self.factors[..., self._size * self._levels : -self._size, :]

    @property
    def tail(self) -> jax.Array:
        """[..., C, K]."""
        return self.factors[..., -self._size :, :]

    @property
    def total(self) -> jax.Array:
        """[..., K], the decay of the chunk."""
        return self.factors[..., -self._size - 1, :]

    @property
    def enter(self) -> jax.Array:
        """[..., L, 1, C/2, K]."""
        return self._halvings(0)

    @property
    def leave(self) -> jax.Array:
        """[..., L, 1, C/2, K]."""
        return self._halvings(1)

    @property
    def _levels(self):
        return self.y_halves.shape[-3]

    @property
    def _size(self):
        return self.factors.shape[-2] // (self._levels + 2)

    def _halvings(self, which):
        levels, half = self._levels, self._size // 2
        rows = self.factors[..., which * levels * half :, :]
        rows = rows[..., : levels * half, :]
        return rows.reshape(*rows.shape[:-2], levels, 1, half, rows.shape[-1])


def pairs(x: jax.Array | None, y: jax.Array, log: jax.Array) -> Pairs:
    """What the scores of a chunk are made of.

    Args:
      x: [..., M, C, K], what reads; C a power of two, at least 2.  None where
        it is not known yet, see `with_reads`.
      y: [..., P, C, K], what is read.
      log: [..., C, K], natural-log gates <= 0 of any size, -inf included.

    Returns:
      `Pairs`.
    """
    size = log.shape[-2]
    finite = jnp.where(recurrence.vanishes(log), _VANISHED, log)
    factors = jnp.exp(product(sums(size), finite))
    levels, half = (size - 1).bit_length(), size // 2
    enter, leave = (
        factors[..., n * levels * half : (n + 1) * levels * half, :].reshape(
            *log.shape[:-2], levels, 1, half, log.shape[-1]
        )
        for n in (0, 1)
    )
    x_halves = None if x is None else flat(_halves(x, 1) * enter)
    y_halves = flat(_halves(y, 0) * leave)
    # Without the barrier XLA makes them again in each consumer.
    return Pairs(*jax.lax.optimization_barrier((factors, x_halves, y_halves)))


def with_reads(p: Pairs, x: jax.Array) -> Pairs:
    """Pairs with x [..., M, C, K] as what reads."""
    x_halves = flat(_halves(x, 1) * p.enter)
    return p._replace(x_halves=jax.lax.optimization_barrier(x_halves))


def scores(
    p: Pairs, x: jax.Array, y: jax.Array, wanted, *, precision
) -> list[jax.Array]:
    """A of reads and writes, 0 above the diagonal.

    Args:
      p: of x, y and their gates.
      x: [..., M, C, K].
      y: [..., P, C, K].
      wanted: for every array of the result the (read, write) that lie in it,
        one below the other.
      precision: of the products.

    Returns:
      Arrays [..., len(wanted[n]) C, C].
    """
    blocks = jnp.einsum(
        "...ik,...jk->...ij", p.x_halves, p.y_halves, precision=precision
    )
    # Of these only i = j counts; a sum over K alone is slower on a CPU.
    whole = jnp.einsum(
        "...ik,...jk->...ij", flat(x), flat(y), precision=precision
    )
    reads, size = x.shape[-3:-1]
    in_blocks, _ = _channel_halvings.places(reads, y.shape[-3], size)
    made = []
    for vectors in wanted:
        source = np.concatenate([in_blocks[n, m] for m, n in vectors])
        own = jnp.concatenate(
            [
                whole[..., m * size : (m + 1) * size, n * size : (n + 1) * size]
                for m, n in vectors
            ],
            axis=-2,
        )
        own_token = np.tile(np.eye(size, dtype=bool), (len(vectors), 1))
        made.append(
            jnp.where(
                own_token, own, _channel_halvings.gather(blocks, 3, source)
            )
        )
    # Kept for the backward pass too: without the barrier gathered twice.
    return jax.lax.optimization_barrier(made)


def product(matrix, x):
    """A constant matrix times x [..., R, K], exactly."""
    matrix = jnp.asarray(matrix, x.dtype)
    matrix = jnp.broadcast_to(matrix, (*x.shape[:-2], *matrix.shape))
    return jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)


def _halves(x, which):
    """Rows of first (0) or second (1) halves: [..., L, M, C/2, K]."""
    size, width = x.shape[-2:]
    rows = []
    for level in range((size - 1).bit_length()):
        split = x.reshape(*x.shape[:-2], -1, 2, 1 << level, width)
        half = split[..., which, :, :]
        rows.append(half.reshape(*x.shape[:-2], size // 2, width))
    return jnp.stack(rows, axis=-4)


def flat(x):
    """[..., M, C, K] to [..., M C, K]."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


@functools.cache
def sums(size):
    """[L C + 2 C, C] of zeros and ones: the gates in each factor."""
    i, m = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    enter, leave = [], []
    for level in range((size - 1).bit_length()):
        same = i >> level == m >> level
        second = (np.arange(size) >> level) % 2 == 1
        enter.append((same & (m <= i))[second])
        leave.append((same & (m > i))[~second])
    rows = [*enter, *leave, m <= i, m > i]
    return np.concatenate(rows).astype(np.float64)
