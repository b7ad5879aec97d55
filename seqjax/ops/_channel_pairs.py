"""Scores between the tokens of one chunk, for one gate a key channel.

    A_ij = sum_k x_ik y_jk D_ij,k    D_ij,k = product of exp(g_m,k), j < m <= i

A gate a channel stands inside the sum over K, so scores are no mask times a
product of matrices.  Nor may D be split as exp(G_i) exp(-G_j), which overflows.
The chunk is halved instead, and halved again (`_channel_decays`): every pair
parts at one halving, where D_ij = enter_i leave_j with factors in [0, 1], and
the scores of that halving are one product of x * enter (rows of second halves)
and y * leave (rows of first halves), of which the blocks on the diagonal count.

Time O(C (C log C) K) in products of C/2 x C/2 matrices, log2 C of them, and
O(C log C K) elementwise, with one exp a token and channel.

`channel_inside` may be differentiated by `jax.vjp` inside a step that
recomputes, nothing but its arguments has to be kept.  The delta rules, with two
vectors that read and up to two that are read, have `_channel_scores`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.ops import _channel_decays
from seqjax.ops import _channel_halvings


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
      x: [..., M, C, K], M vectors a token that read; or one, [..., C, K].
      y: [..., C, K], what is read.
      log: [..., C, K], natural-log gates <= 0 of any size, -inf included.
      precision: of the matrix products.

    Returns:
      (scores, x_head, y_tail): scores [..., M, C, C] is A_ij for i >= j and 0
      elsewhere (i = j without decay); x_head [..., M, C, K] reads the state in
      front of the chunk; y_tail [..., C, K] writes to the one behind it.  No
      axis M where x has none.
    """
    size = log.shape[-2]
    pad = max(2, 1 << (size - 1).bit_length()) - size
    if pad:  # identity tokens, up to a power of two
        x, y, log = (
            jnp.pad(z, ((0, 0),) * (z.ndim - 2) + ((0, pad), (0, 0)))
            for z in (x, y, log)
        )
    decays = _channel_decays.channel_decays(log)
    reads = ""
    enter, head, read = decays.enter, decays.head, y
    if x.ndim > y.ndim:
        reads = "m"
        enter, head, read = (z[..., None, :, :] for z in (enter, head, read))
    blocks = jnp.einsum(
        f"...l{reads}ik,...ljk->...l{reads}ij",
        _channel_decays.halves(x, 1, axis=-3 - len(reads)) * enter,
        _channel_decays.halves(y, 0) * decays.leave,
        precision=precision,
    )
    if reads:
        scores = _assemble(blocks)
    else:
        scores = _assemble(blocks[..., None, :, :])[..., 0, :, :]
    own = jnp.sum(x * read, axis=-1)
    scores = jnp.where(np.eye(size + pad, dtype=bool), own[..., None], scores)
    x_head = x * head
    y_tail = y * decays.tail
    if pad:
        scores = scores[..., :size, :size]
        x_head, y_tail = x_head[..., :size, :], y_tail[..., :size, :]
    return scores, x_head, y_tail


@jax.custom_vjp
def _assemble(blocks):
    """Scores [..., M, C, C], i > j, from those of each halving.

    Args:
      blocks: [..., log2 C, M, C/2, C/2]; entries of tokens that part at another
        halving are ignored.
    """
    reads, half = blocks.shape[-3:-1]
    source, _ = _channel_halvings.places(reads, 1, 2 * half)
    return _channel_halvings.gather(blocks, 4, source[0])


def _disassemble(_, scores):
    reads, size = scores.shape[-3:-1]
    _, source = _channel_halvings.places(reads, 1, size)
    source = source.reshape(-1, reads, size // 2, size // 2)
    return (_channel_halvings.gather(scores, 3, source),)


_assemble.defvjp(lambda blocks: (_assemble(blocks), None), _disassemble)
