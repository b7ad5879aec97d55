"""Token shift: the input of the token before (RWKV)."""

import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import norms


def shift(
    x: jax.Array,
    state: jax.Array | None,
    segment_ids: jax.Array | None,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
    """x [B, T, D] one token later, and the state [B, 1, D], the last token.

    A document starts with 0; padding is passed over.  It is a convolution of
    width 2 that takes the earlier token alone.

    Args:
      x: [B, T, D].
      state: as returned, or None.
      segment_ids: int32 [B, T] or None.
      axis_name: mesh axis that shards T.
    """
    weight = jnp.zeros((2, x.shape[-1]), norms.wide(x.dtype)).at[0].set(1)
    return ops.short_convolution(
        x,
        weight,
        initial_state=state,
        segment_ids=segment_ids,
        axis_name=axis_name,
    )


def empty(batch: int, width: int, dtype: jnp.dtype) -> jax.Array:
    """The state before any token."""
    return jnp.zeros((batch, 1, width), norms.wide(dtype))
