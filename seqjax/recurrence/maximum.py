"""The running maximum that stabilises exponential gates.

    m_t = max(d_t + m_{t-1}, i_t)

is an affine recurrence in which max stands for + and + for *, so its maps
m -> max(d + m, i) compose alike: (d2, i2) after (d1, i1) is
(d1 + d2, max(d2 + i1, i2)).  Nothing here but sums and maxima: exact to the
rounding of the sums, differentiable any number of times, and -inf (nothing yet,
or cut off) needs no special case.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Steps of the two loops over T tokens: C + T / C with blocks of C.
_BLOCK = 64


class MaxPlus(NamedTuple):
    """The map m -> max(d + m, i); arrays of equal shape."""

    d: jax.Array
    i: jax.Array

    def apply(self, m: jax.Array) -> jax.Array:
        """The maximum after the map."""
        return jnp.maximum(self.d + m, self.i)

    def compose(self, earlier: "MaxPlus") -> "MaxPlus":
        """This map after `earlier`."""
        return MaxPlus(self.d + earlier.d, self.apply(earlier.i))

    def identity(self) -> "MaxPlus":
        """The map that changes nothing, in the shapes of this one."""
        return MaxPlus(jnp.zeros_like(self.d), jnp.full_like(self.i, -jnp.inf))


def prefix_maxima(maps: MaxPlus) -> MaxPlus:
    """Composes the maps of T tokens up to and with each.

    Args:
      maps: arrays [B, T, H]; d <= 0.

    Returns:
      `MaxPlus` of arrays [B, T, H].
    """
    batch, length, heads = maps.d.shape
    if length < 2:
        return maps
    size = min(_BLOCK, length)
    blocks = math.ceil(length / size)

    def split(x, fill):
        """[B, T, H] to [C, n, B, H]."""
        pad = ((0, 0), (0, blocks * size - length), (0, 0))
        x = jnp.pad(x, pad, constant_values=fill)
        return x.reshape(batch, blocks, size, heads).transpose(2, 1, 0, 3)

    def inside(earlier, token):
        until = token.compose(earlier)
        return until, until

    def across(earlier, block):
        return block.compose(earlier), earlier

    split_maps = MaxPlus(split(maps.d, 0), split(maps.i, -jnp.inf))
    totals, within = jax.lax.scan(inside, _nothing(split_maps), split_maps)
    _, before = jax.lax.scan(across, _nothing(totals), totals)
    until = within.compose(jax.tree.map(lambda x: x[None], before))
    return jax.tree.map(
        lambda x: x.transpose(2, 1, 0, 3).reshape(batch, blocks * size, heads)[
            :, :length
        ],
        until,
    )


def _nothing(like):
    """The identity map in the shape of one entry of `like`."""
    return MaxPlus(like.d[0], like.i[0]).identity()
