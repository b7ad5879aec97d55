"""Documents packed into one row: where they start, and what padding is.

`segment_ids` is int32 [B, T], non-decreasing over real tokens and at least 0
there; -1 marks padding and may stand anywhere.  A padding token is the identity
map: no decay, no write, no reset.
"""

import jax
import jax.numpy as jnp

PADDING = -1


def previous_segment(segment_ids: jax.Array) -> jax.Array:
    """Id of the last real token strictly before each token.

    Args:
      segment_ids: int32 [B, T].

    Returns:
      int32 [B, T], -1 where no real token came before.
    """
    # Ids do not decrease over real tokens and padding is smaller than any of
    # them, so the last real id is the running maximum.
    last = jax.lax.cummax(segment_ids, axis=1)
    return jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING)


def segment_starts(segment_ids: jax.Array) -> jax.Array:
    """Marks real tokens whose document differs from the last real token's.

    Args:
      segment_ids: int32 [B, T].

    Returns:
      bool [B, T].  False at the first real token of a row: it continues
      whatever state came in.
    """
    before = previous_segment(segment_ids)
    return (
        (segment_ids != PADDING) & (before != PADDING) & (segment_ids != before)
    )


def mask_padding(segment_ids: jax.Array | None, x: jax.Array) -> jax.Array:
    """Sets `x` [B, T, ...] to 0 at padding; the gradient there is 0 too."""
    if segment_ids is None:
        return x
    real = (segment_ids != PADDING).reshape(
        segment_ids.shape + (1,) * (x.ndim - 2)
    )
    return jnp.where(real, x, jnp.zeros_like(x))


def real_positions(segment_ids: jax.Array) -> jax.Array:
    """Index of each token within its document, padding not counted.

    Args:
      segment_ids: int32 [B, T].

    Returns:
      int32 [B, T]: 0, 1, 2, ... over the real tokens of a document; padding
      repeats the position of the last real token before it (0 if none).
    """
    real = segment_ids != PADDING
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)  # real tokens up to here
    start = segment_starts(segment_ids)
    offset = jax.lax.cummax(jnp.where(start, count - 1, 0), axis=1)
    return jnp.maximum(count - 1 - offset, 0)
