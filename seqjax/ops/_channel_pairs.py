"""Decays between the tokens of one chunk, for one gate a key channel.

    A_ij = sum_k x_ik y_jk D_ij,k    D_ij,k = product of exp(g_m,k), j < m <= i

A gate a channel stands inside the sum over K, so scores are no mask times a
product of matrices.  Nor may D be split as exp(G_i) exp(-G_j), which overflows.
The chunk is halved instead, and halved again.  Tokens i > j part at exactly one
halving; with the border of that halving between them,

    D_ij = enter_i leave_j    enter_i = product over border <= m <= i
                              leave_j = product over j < m < border

Both are products of numbers in [0, 1] within one half: nothing overflows, no
sum is subtracted from another, and relative errors are those of a few
multiplications whatever the gates.  A chunk of C tokens has log2(C) halvings,
each one masked matrix product.  `enter` and `leave` of a halving are products
of those of the finer one, so that there is one exp a token and channel.

A gate of -inf is a factor of exactly 0 and needs no counting; a document border
is such a gate (`with_starts`).

The gate gradient of a halving is a sum of x * dx (second half) or y * dy (first
half) over the pairs that the gate stands between: terms dA * A, not one of them
cancelled later.  They run down the ladder that the products ran up.

What an operator on the delta rule needs: call `channel_inside` with its reading
vectors (q and k, say) stacked in `x`; it may be differentiated by `jax.vjp`
inside a step that recomputes, nothing but its arguments has to be kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ChannelDecays(NamedTuple):
    """Decays of a chunk of C tokens, factors in [0, 1].

    Attributes:
      halvings: from the finest (pairs of tokens) to the coarsest (halves of the
        chunk), arrays [..., C, K]: `leave` of the tokens in first halves,
        `enter` of those in second halves.
      head: [..., C, K], from in front of the chunk through token i; its last
        row is the decay of the whole chunk.
      tail: [..., C, K], from behind token j through the end of the chunk.
    """

    halvings: tuple[jax.Array, ...]
    head: jax.Array
    tail: jax.Array


def with_starts(log: jax.Array, starts: jax.Array | None) -> jax.Array:
    """Gates that also cut the past off where a document starts.

    Args:
      log: [..., C, K].
      starts: bool [..., C], leading axes broadcast, or None.

    Returns:
      [..., C, K]; where cut, -inf, and the gradient of the gate is 0.
    """
    if starts is None:
        return log
    return jnp.where(starts[..., None], -jnp.inf, log)


def channel_inside(
    x: jax.Array,
    y: jax.Array,
    log: jax.Array,
    *,
    precision: jax.lax.Precision,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All that a chunk needs of its gates.

    A read that comes before the decay of its own token (i > j, D over
    j < m < i) is this one with `x` moved one token earlier and the rows of the
    scores one later.

    Args:
      x: [..., M, C, K], M vectors a token that read.
      y: [..., C, K], what is read.
      log: [..., C, K], natural-log gates <= 0 of any size, -inf included.
      precision: of the matrix products.

    Returns:
      (scores, x_head, y_tail): scores [..., M, C, C] is A_ij for i >= j and 0
      elsewhere (i = j without decay); x_head [..., M, C, K] reads the state in
      front of the chunk; y_tail [..., C, K] writes to the one behind it.
    """
    size = log.shape[-2]
    pad = (1 << (size - 1).bit_length()) - size
    if pad:  # identity tokens, up to a power of two
        x, y, log = (
            jnp.pad(z, ((0, 0),) * (z.ndim - 2) + ((0, pad), (0, 0)))
            for z in (x, y, log)
        )
    decays = channel_decays(log)
    scores = channel_scores(x, y, decays, precision=precision)
    x_head = x * decays.head[..., None, :, :]
    y_tail = y * decays.tail
    if pad:
        scores = scores[..., :size, :size]
        x_head, y_tail = x_head[..., :size, :], y_tail[..., :size, :]
    return scores, x_head, y_tail


def channel_scores(
    x: jax.Array,
    y: jax.Array,
    decays: ChannelDecays,
    *,
    precision: jax.lax.Precision,
) -> jax.Array:
    """A_ij for i >= j, 0 elsewhere.

    Args:
      x: [..., M, C, K].
      y: [..., C, K].
      decays: of the chunk, C a power of two.
      precision: of the matrix products.

    Returns:
      [..., M, C, C].
    """
    size = y.shape[-2]
    own = jnp.sum(x * y[..., None, :, :], axis=-1)
    scores = jnp.where(np.eye(size, dtype=bool), own[..., None], 0)
    token = np.arange(size)
    for level, factor in enumerate(decays.halvings):
        half = token >> level
        # i in the second half and j in the first half of one block
        parted = (half[:, None] ^ half == 1) & (half[:, None] > half)
        pairs = jnp.einsum(
            "...mik,...jk->...mij",
            x * factor[..., None, :, :],
            y * factor,
            precision=precision,
        )
        scores = jnp.where(parted, pairs, scores)
    return scores


@jax.custom_vjp
def channel_decays(log: jax.Array) -> ChannelDecays:
    """Decays of a chunk from its gates.

    Args:
      log: [..., C, K], C a power of two.

    Returns:
      `ChannelDecays`.
    """
    halvings = []
    enter = jnp.exp(log)
    leave = jnp.ones_like(enter)
    half = 1
    while half < log.shape[-2]:
        first_enter, second_enter = _halves(enter, half)
        first_leave, second_leave = _halves(leave, half)
        halvings.append(_join(first_leave, second_enter))
        first_total = first_enter[..., -1:, :]
        second_total = second_enter[..., -1:, :]
        enter = _join(first_enter, first_total * second_enter)
        leave = _join(first_leave * second_total, second_leave)
        half *= 2
    return ChannelDecays(tuple(halvings), enter, leave)


def _decays_fwd(log):
    decays = channel_decays(log)
    return decays, decays


def _decays_bwd(decays, bars):
    # From here on the cotangents of logarithms, sums where products were.
    enter = decays.head * bars.head
    leave = decays.tail * bars.tail
    half = enter.shape[-2]
    total = jnp.zeros_like(enter[..., :1, :])  # of each block's whole sum
    for factor, bar in reversed(
        tuple(zip(decays.halvings, bars.halvings, strict=True))
    ):
        half //= 2
        first_enter, second_enter = _halves(enter, half)
        first_leave, second_leave = _halves(leave, half)
        first_bar, second_bar = _halves(factor * bar, half)
        total = total.reshape(*first_enter.shape[:-2], 1, -1)
        total = _join(
            total + jnp.sum(second_enter, axis=-2, keepdims=True),
            total + jnp.sum(first_leave, axis=-2, keepdims=True),
        )
        enter = _join(first_enter, second_enter + second_bar)
        leave = _join(first_leave + first_bar, second_leave)
    return (enter + total.reshape(enter.shape),)


channel_decays.defvjp(_decays_fwd, _decays_bwd)


def _halves(x, half):
    """[..., C, K] to first and second halves [..., blocks, half, K]."""
    x = x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1])
    return x[..., 0, :, :], x[..., 1, :, :]


def _join(first, second):
    """The inverse of `_halves`."""
    x = jnp.stack([first, second], axis=-3)
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])
