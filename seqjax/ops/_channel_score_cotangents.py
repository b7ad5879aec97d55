"""Cotangents of the scores of `_channel_scores`, halving by halving.

With a cotangent A of the scores and x, y what reads and what is read,

    dx_i = sum_{j <= i} A_ij D_ij y_j       dy_j = sum_{i >= j} A_ij D_ij x_i

and the gates' are sums of factor * cotangent.  What reads through dx alone, as
a rule whose scores are its inputs does, calls `read` and `x_cotangents`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import recurrence
from seqjax.ops import _channel_halvings
from seqjax.ops import _channel_scores


def scores_cotangents(
    p: _channel_scores.Pairs,
    x: jax.Array,
    y: jax.Array,
    log: jax.Array,
    bars: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    *,
    own_reads: int,
    precision,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of x, y and log.

    Args:
      p: of x, y and log.
      x: [..., M, C, K].
      y: [..., P, C, K].
      log: [..., C, K].
      bars: of the scores, [..., M, C, P, C]; of x * head, [..., M, C, K]; of
        y * tail, [..., P, C, K]; of the logarithm of the chunk's decay,
        [..., K].
      own_reads: how many of the reads see their own token, the first ones; the
        scores of others count for i > j alone.
      precision: of the products.
    """
    scores_bar, head_bar, *_ = bars
    inside = read(p, scores_bar, precision=precision)
    y_bar, log_bar = rest_of_cotangents(
        p, x, y, log, bars, inside, own_reads=own_reads, precision=precision
    )
    x_bar = x_cotangents(
        p, y, scores_bar, head_bar, inside, own_reads=own_reads
    )
    return jnp.stack(x_bar, axis=-3), y_bar, log_bar


class Inside(NamedTuple):
    """What the scores' cotangents read in a chunk, halving by halving.

    Attributes:
      blocks: [..., L, M C/2, P C/2], the cotangents.
      read: [..., L, M C/2, K], of them and y * leave.
    """

    blocks: jax.Array
    read: jax.Array


def read(p: _channel_scores.Pairs, square: jax.Array, *, precision) -> Inside:
    """Sums over j < i of square_ij leave_j y_j, of each halving.

    Args:
      p: of y and the gates.
      square: [..., M, C, P, C], cotangents of scores.
      precision: of the product.
    """
    reads, size, writes = square.shape[-4:-1]
    _, source = _channel_halvings.places(reads, writes, size)
    blocks = _channel_halvings.gather(square, 4, source)
    made = jnp.einsum(
        "...ij,...jk->...ik", blocks, p.y_halves, precision=precision
    )
    return Inside(blocks, jax.lax.optimization_barrier(made))


def x_cotangents(
    p: _channel_scores.Pairs,
    y: jax.Array,
    square: jax.Array,
    head_bar: jax.Array,
    inside: Inside,
    *,
    own_reads: int,
) -> list[jax.Array]:
    """Sums over j <= i of square_ij D_ij y_j, and what is read at the head.

    Args:
      p: of y and the gates.
      y: [..., P, C, K].
      square: [..., M, C, P, C].
      head_bar: [..., M, C, K].
      inside: of `read`.
      own_reads: as of `scores_cotangents`.

    Returns:
      M arrays [..., C, K].
    """
    reads, _, writes, _ = square.shape[-4:]
    x_bar = _whole(_split(inside.read, reads), p.enter, 1)
    for m in range(reads):
        x_bar[m] += head_bar[..., m, :, :] * p.head
        for n in range(writes if m < own_reads else 0):
            x_bar[m] += _own(square, m, n) * y[..., n, :, :]
    return x_bar


def rest_of_cotangents(
    p: _channel_scores.Pairs,
    x: jax.Array,
    y: jax.Array,
    log: jax.Array,
    bars: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    inside: Inside,
    *,
    own_reads: int,
    precision,
) -> tuple[jax.Array, jax.Array]:
    """Cotangents of y and log; all as of `scores_cotangents` and `read`."""
    scores_bar, head_bar, tail_bar, total_bar = bars
    reads, writes, size = x.shape[-3], y.shape[-3], x.shape[-2]
    y_halves_bar = jnp.einsum(
        "...ij,...ik->...jk", inside.blocks, p.x_halves, precision=precision
    )
    y_halves_bar = jax.lax.optimization_barrier(y_halves_bar)
    # Cotangents of logarithms: sums of factor * cotangent, all of one chunk.
    head, tail = p.head[..., None, :, :], p.tail[..., None, :, :]
    sums_bar = jnp.concatenate(
        [
            _channel_scores.flat(
                _over_vectors(_split(inside.read * p.x_halves, reads))
            ),
            _channel_scores.flat(
                _over_vectors(_split(y_halves_bar * p.y_halves, writes))
            ),
            _over_vectors(head_bar * x * head).at[..., -1, :].add(total_bar),
            _over_vectors(tail_bar * y * tail),
        ],
        axis=-2,
    )
    log_bar = _channel_scores.product(_channel_scores.sums(size).T, sums_bar)
    log_bar = jnp.where(recurrence.vanishes(log), 0, log_bar)

    y_bar = _whole(_split(y_halves_bar, writes), p.leave, 0)
    for n in range(writes):
        y_bar[n] += tail_bar[..., n, :, :] * p.tail
        for m in range(own_reads):
            y_bar[n] += _own(scores_bar, m, n) * x[..., m, :, :]
    return jnp.stack(y_bar, axis=-3), log_bar


def _own(square, m, n):
    """[..., C, 1], what stands at i = j."""
    own = square[..., m, :, n, :]
    return jnp.diagonal(own, axis1=-2, axis2=-1)[..., None]


def _split(x, vectors):
    """[..., L, M C/2, K] to [..., L, M, C/2, K]."""
    *lead, levels, rows, width = x.shape
    return x.reshape(*lead, levels, vectors, rows // vectors, width)


def _over_vectors(x):
    """The sum over axis -3, a few vectors, spelled out.

    XLA's reduction over such an axis is tens of times slower on a CPU.
    """
    total = x[..., 0, :, :]
    for m in range(1, x.shape[-3]):
        total += x[..., m, :, :]
    return total


def _whole(bar, factor, which):
    """The transpose of taking halves of x times a factor, by vector."""
    *lead, levels, vectors, half, width = bar.shape
    # All vectors of a token side by side: one product.
    rows = jnp.moveaxis(bar * factor, -3, -2)
    rows = rows.reshape(*lead, levels * half, vectors * width)
    whole = _channel_scores.product(_selection(2 * half, which).T, rows)
    return jnp.split(whole, vectors, axis=-1)


@functools.cache
def _selection(size, which):
    """[L C/2, C] of zeros and ones: what the halves take, level by level."""
    tokens = np.arange(size)
    rows = [
        np.eye(size)[(tokens >> level) % 2 == which]
        for level in range((size - 1).bit_length())
    ]
    return np.concatenate(rows)
