"""Decay factors of a chunk that is halved again and again.

Tokens i > j of a chunk part at exactly one halving.  With the border of that
halving between them, the product of the factors exp(g_m) over j < m <= i is

    D_ij = enter_i leave_j    enter_i = product over border <= m <= i
                              leave_j = product over j < m < border

Both are products of numbers in [0, 1] within one half: nothing overflows, no
sum is subtracted from another, and relative errors are those of a few
multiplications whatever the gates.  A gate of -inf is a factor of exactly 0.

The factors of all halvings are products of the totals of blocks of 1, 2, 4, ..
tokens, so that there is one exp a token and channel.

The gradient is taken of the logarithms, as sums where the products were, down
the same ladder: a gate receives the sum of factor * cotangent over all products
that it stands in, plain sums of terms dA * A that nothing cancels later.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ChannelDecays(NamedTuple):
    """Factors in [0, 1] of a chunk of C tokens, C a power of two.

    Attributes:
      leave: [..., log2 C, C/2, K] from each token of a first half (exclusive)
        to the border; from the finest halving, into single tokens, to the
        coarsest, into the halves of the chunk.
      enter: [..., log2 C, C/2, K] from the border through each token of a
        second half.
      head: [..., C, K] from in front of the chunk through each token; its last
        row is the decay of the whole chunk.
      tail: [..., C, K] from behind each token through the end of the chunk.
    """

    leave: jax.Array
    enter: jax.Array
    head: jax.Array
    tail: jax.Array


@jax.custom_vjp
def channel_decays(log: jax.Array) -> ChannelDecays:
    """The factors of a chunk from its gates.

    Args:
      log: [..., C, K], natural-log gates <= 0, -inf included; C a power of two,
        at least 2.

    Returns:
      `ChannelDecays`.
    """
    own = _bits(jnp.exp(log))
    # What merging two halves adds: to tokens of the second the total of the
    # first on entering, to tokens of the first that of the second on leaving.
    to_enter, to_leave = [], []
    total = own
    for level in range(_levels(log)):
        first, second = _half(total, level, 0), _half(total, level, 1)
        to_enter.append(_join(jnp.ones_like(first), first, level))
        to_leave.append(_join(second, jnp.ones_like(second), level))
        total = first * second
    # Without the barrier XLA repeats the whole ladder, exp included, in each
    # consumer; with one a level it gains nothing from fusing them.
    to_enter, to_leave = jax.lax.optimization_barrier((to_enter, to_leave))

    leave, enter = [], []
    head, tail = own, jnp.ones_like(own)
    for level in range(_levels(log)):
        enters = _half(own, level, 1)
        leaves = jnp.ones_like(enters)
        for finer in range(level):
            enters = enters * _half(to_enter[finer], level, 1)
            leaves = leaves * _half(to_leave[finer], level, 0)
        leave.append(_rows(leaves, log))
        enter.append(_rows(enters, log))
        head = head * to_enter[level]
        tail = tail * to_leave[level]
    return ChannelDecays(
        jnp.stack(leave, axis=-3),
        jnp.stack(enter, axis=-3),
        _rows(head, log),
        _rows(tail, log),
    )


def _forward(log):
    decays = channel_decays(log)
    return decays, decays


def _backward(decays, bars):
    # From here on the cotangents of logarithms.
    leave, enter, head, tail = (
        factor * bar for factor, bar in zip(decays, bars, strict=True)
    )
    levels = leave.shape[-3]
    enters, leaves = _bits(head), _bits(tail)
    total = jnp.zeros((), head.dtype)  # of each block of 2^(level + 1)
    for level in reversed(range(levels)):
        first_enters, second_enters = (_half(enters, level, i) for i in (0, 1))
        first_leaves, second_leaves = (_half(leaves, level, i) for i in (0, 1))
        total = _join(
            total + _sum_below(second_enters, level),
            total + _sum_below(first_leaves, level),
            level,
        )
        shape = second_enters.shape
        second_enters += enter[..., level, :, :].reshape(shape)
        first_leaves += leave[..., level, :, :].reshape(shape)
        enters = _join(first_enters, second_enters, level)
        leaves = _join(first_leaves, second_leaves, level)
    return (_rows(enters + total, head),)


channel_decays.defvjp(_forward, _backward)


def halves(x: jax.Array, which: int, axis: int = -3) -> jax.Array:
    """Rows of the first (0) or second (1) halves of every halving.

    Args:
      x: [..., C, K].
      which: 0 or 1.
      axis: of the result, along which the halvings lie.

    Returns:
      [..., log2 C, C/2, K], in the order of `ChannelDecays`.
    """
    bits = _bits(x)
    return jnp.stack(
        [_rows(_half(bits, n, which), x) for n in range(_levels(x))], axis=axis
    )


# Inside, a token's index is written in binary, one axis a bit, so that halves
# are slices: [..., C, K] is [..., 2, 2, .., 2, K].


def _levels(x):
    return (x.shape[-2] - 1).bit_length()


def _bits(x):
    return x.reshape(*x.shape[:-2], *(2,) * _levels(x), x.shape[-1])


def _rows(x, like):
    return x.reshape(*like.shape[:-2], -1, like.shape[-1])


def _half(x, level, which):
    """Tokens whose bit `level` is `which`; the axis stays, with size 1."""
    return jax.lax.index_in_dim(x, which, x.ndim - 2 - level, keepdims=True)


def _join(first, second, level):
    return jnp.concatenate([first, second], axis=first.ndim - 2 - level)


def _sum_below(x, level):
    """Sum over the bits below `level`: one number a block."""
    axes = tuple(range(x.ndim - 1 - level, x.ndim - 1))
    return jnp.sum(x, axis=axes, keepdims=True)
