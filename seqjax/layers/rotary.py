"""Rotary position embedding (RoPE, arXiv 2104.09864).

Channel pair (j, j + D/2) of a head turns by the angle position * base^(-2j/D),
so that q . k depends on the distance of the two tokens alone.  Angles are
float32: exact positions up to 2^24.
"""

import jax
import jax.numpy as jnp

from seqjax.layers import norms
from seqjax.recurrence import segments


def rotate(
    x: jax.Array, positions: jax.Array, base: float, dim: int | None = None
) -> jax.Array:
    """Turns each head by the angles of its token.

    Args:
      x: [B, T, H, D], D even.
      positions: int32 [B, T].
      base: of the geometric row of wavelengths; 10000 in the paper.
      dim: the first channels of each head, an even number of them, that turn
        as a head of that width would; None for all.

    Returns:
      [B, T, H, D] in the dtype of x.

    Raises:
      ValueError: D is odd.
    """
    if dim is not None and dim < x.shape[-1]:
        turned = rotate(x[..., :dim], positions, base)
        return jnp.concatenate([turned, x[..., dim:]], axis=-1)
    if x.shape[-1] % 2:
        raise ValueError(
            f"rotary positions need an even head_dim, got {x.shape[-1]}; change"
            " it, or set rotary_base=None where the layer allows that"
        )
    half = x.shape[-1] // 2
    dtype = norms.wide(x.dtype)
    frequency = base ** (-jnp.arange(half, dtype=dtype) / half)
    angle = jnp.einsum("bt,d->btd", positions.astype(dtype), frequency)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


def positions_or_default(
    positions: jax.Array | None,
    segment_ids: jax.Array | None,
    shape: tuple[int, ...],
    *,
    continued: bool,
) -> jax.Array:
    """The positions given, or those of documents that start in this call.

    Args:
      positions: int32 [B, T] or None.
      segment_ids: int32 [B, T] or None.
      shape: (B, T).
      continued: whether the call goes on from a state or from another
        device's tokens, whose positions the layer cannot know.

    Returns:
      int32 [B, T].

    Raises:
      ValueError: positions are missing and cannot be derived.
    """
    if positions is not None:
        if positions.shape != shape:
            raise ValueError(
                f"positions must have shape {shape}, got {positions.shape}"
            )
        return positions
    if continued:
        raise ValueError(
            "positions must be given along with state or axis_name, got None: "
            "int32 [B, T], the index of each token in its document, counted "
            "on from the tokens that made the state"
        )
    if segment_ids is not None:
        return segments.real_positions(segment_ids)
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
