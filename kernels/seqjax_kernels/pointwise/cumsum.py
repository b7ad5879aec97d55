"""Cumulative sum inside chunks, carried as two floats.

    high_t + low_t = sum of x over the tokens of t's chunk up to t

The decay between two tokens is a difference of such sums; of plain float32 sums
it would lose all digits behind one large gate.  Memory-bound: reads x once and
writes both.  A gate of -inf is no number in a sum: count those apart.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax_kernels import batching
from seqjax_kernels import launch
from seqjax_kernels.pointwise import configs


class _Static(NamedTuple):
    chunk_size: int
    reverse: bool
    launcher: str | None


def chunk_cumsum(
    x: jax.Array,
    chunk_size: int,
    *,
    reverse: bool = False,
    launcher: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums along time within chunks; differentiable once, in reverse.

    Args:
      x: [B, T, ...] float16, bfloat16 or float32, finite.
      chunk_size: tokens of a chunk; the last may be shorter.
      reverse: True for sums from t to the chunk's end.
      launcher: as in `launch.call`.

    Returns:
      (high, low), float32 of the shape of x: the sum rounded, and the rest,
      which takes no cotangent.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    static = _Static(chunk_size, reverse, launcher)
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    made: Any = _cumsum(static, flat)
    high, low = made
    return high.reshape(x.shape), low.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cumsum(static, x):
    def run(x):
        from seqjax_kernels.pointwise import cumsum_kernels

        batch, length, width = x.shape
        size = static.chunk_size
        config = configs.cumsum(size, width)
        out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return launch.call(
            cumsum_kernels.chunk_cumsum_kernel,
            x,
            outputs=[out, out],
            grid=(
                batch * -(-length // size),
                -(-width // config.columns),
                1,
            ),
            constants=dict(
                T=length,
                F=width,
                C=size,
                REVERSE=static.reverse,
                BC=config.rows,
                BF=config.columns,
            ),
            num_warps=config.num_warps,
            launcher=static.launcher,
        )

    return batching.fold(run, (True,))(x)


def _forward(static, x):
    return _cumsum(static, x), x[:0, :0, :0]  # of which only the dtype is read


def _backward(static, kept, bars):
    back = static._replace(reverse=not static.reverse)
    made: Any = _cumsum(back, bars[0])
    return (made[0].astype(kept.dtype),)


_cumsum.defvjp(_forward, _backward)
