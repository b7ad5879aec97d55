"""Inverse of unit lower triangular matrices, by substitution only.

    X = (I + L)^-1, L strictly lower

Diagonal blocks of 16 are solved by forward substitution; two neighbouring
inverses merge into the inverse of the block they span:

    [X1  0 ]
    [-X2 L21 X1  X2]

Every entry is a sum in the order of substitution.  The series of powers of L
gives the same matrix in exact arithmetic and fewer steps, but its terms grow
like binomial coefficients and cancel: off by 6e5 on equal keys without decay,
where this is at 1.5e-7.
"""

import jax
import jax.numpy as jnp

_BLOCK = 16


def inverse_of_unit_lower(lower: jax.Array) -> jax.Array:
    """(I + L)^-1 for a batch of matrices.

    Args:
      lower: [..., C, C]; only the strictly lower part is read.

    Returns:
      [..., C, C], unit lower triangular.
    """
    size = lower.shape[-1]
    padded = _BLOCK
    while padded < size:
        padded *= 2
    pad = ((0, 0),) * (lower.ndim - 2) + ((0, padded - size),) * 2
    lower = jnp.pad(lower, pad)
    inverse = _substitute(_blocks(lower, _BLOCK, 0))
    width = _BLOCK
    while width < padded:
        upper_left, lower_right = (
            inverse[..., 0::2, :, :],
            inverse[..., 1::2, :, :],
        )
        below = _blocks(lower, width, 1)
        corner = -_matmul(lower_right, _matmul(below, upper_left))
        top = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], -1)
        bottom = jnp.concatenate([corner, lower_right], -1)
        inverse = jnp.concatenate([top, bottom], -2)
        width *= 2
    return inverse[..., 0, :size, :size]


def _blocks(matrix, width, below):
    """Square blocks on the diagonal, or below it within pairs of them.

    Args:
      matrix: [..., C, C].
      width: of a block.
      below: 0 for all C / width diagonal blocks; 1 for the C / (2 width)
        blocks that join two neighbours.

    Returns:
      [..., blocks, width, width].
    """
    count = matrix.shape[-1] // width
    split = matrix.reshape(*matrix.shape[:-2], count, width, count, width)
    chosen = [
        split[..., i + below, :, i, :] for i in range(0, count, 1 + below)
    ]
    return jnp.stack(chosen, axis=-3)


def _substitute(lower):
    """Forward substitution on [..., 16, 16], one column after the other."""
    size = lower.shape[-1]
    mask = jnp.tri(size, k=-1, dtype=bool).reshape(
        (1,) * (lower.ndim - 2) + (size, size)
    )
    lower = jnp.where(mask, lower, 0)
    one = jnp.eye(size, dtype=lower.dtype)
    x = jnp.broadcast_to(one.reshape(mask.shape), lower.shape)
    for i in range(size - 1):
        # row i is final: take its share out of the rows below
        x = x - lower[..., :, i, None] * x[..., i, None, :]
    return x


def _matmul(x, y):
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
