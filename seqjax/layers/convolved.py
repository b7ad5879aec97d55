"""Queries, keys and values: one projection, a short convolution, silu.

The three are one matrix product and one depthwise convolution over all their
channels, which is the same function as three of each.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import norms
from seqjax.layers import short_convolution


def project(
    x: jax.Array,
    widths: Sequence[int],
    conv_width: int | None,
    conv: jax.Array | None,
    segment_ids: jax.Array | None,
    *,
    dtype: jnp.dtype,
    axis_name: str | None,
    activate: bool = True,
    kernel_init: nn.initializers.Initializer | None = None,
) -> tuple[list[jax.Array], jax.Array | None]:
    """Projects x [B, T, D] to one [B, T, width] for each width.

    Call it in a module: it makes the modules "qkv" and "conv".

    Args:
      x: [B, T, D].
      widths: channels of each part.
      conv_width: tokens the convolution sees, the current one included; None
        for no convolution.
      conv: the last inputs of the convolution [B, W-1, sum(widths)], or None.
      segment_ids: int32 [B, T] or None.
      dtype: of the computation.
      axis_name: mesh axis that shards T.
      activate: whether silu follows where there is no convolution; it always
        follows the convolution.
      kernel_init: of the projection; None for lecun normal.

    Returns:
      The parts, and the state of the convolution, None without one.
    """
    qkv = nn.Dense(
        sum(widths),
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init or nn.initializers.lecun_normal(),
        name="qkv",
    )(x)
    if conv_width is None:
        qkv = nn.silu(qkv) if activate else qkv
    else:
        qkv, conv = short_convolution.ShortConvolution(
            conv_width, axis_name=axis_name, name="conv"
        )(qkv, conv, segment_ids)
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    return jnp.split(qkv, ends, axis=-1), conv


def empty(
    batch: int, widths: Sequence[int], conv_width: int | None, dtype: jnp.dtype
) -> jax.Array | None:
    """The state of the convolution before any token."""
    if conv_width is None:
        return None
    shape = (batch, conv_width - 1, sum(widths))
    return jnp.zeros(shape, norms.wide(dtype))


def low_rank(
    x: jax.Array,
    rank: int | None,
    width: int,
    name: str,
    *,
    use_bias: bool,
    dtype: jnp.dtype,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
    kernel_init: nn.initializers.Initializer | None = None,
    gate: bool = False,
) -> jax.Array:
    """Projects x [B, T, D] to [B, T, width] through `rank` channels.

    Call it in a module: it makes `name` and, with a rank, `name`_in.

    Args:
      x: [B, T, D].
      rank: inner width; None for one full matrix.
      width: of the result.
      name: of the module.
      use_bias: of the last map.
      dtype: of the first map, and of the last one unless it is a gate.
      bias_init: of that bias.
      kernel_init: of both maps; None for lecun normal.
      gate: whether the last map is computed in float32.
    """
    kernel_init = kernel_init or nn.initializers.lecun_normal()
    if rank is not None:
        x = nn.Dense(
            rank,
            use_bias=False,
            dtype=dtype,
            kernel_init=kernel_init,
            name=f"{name}_in",
        )(x)
    return nn.Dense(
        width,
        use_bias=use_bias,
        dtype=norms.wide(dtype) if gate else dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )(x)
