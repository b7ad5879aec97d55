"""Sequence parallelism of elementwise recurrences.

    h_t = a_t h_{t-1} + x_t

A shard is walked twice, and neither walk needs another device: once over x from
a zero state, which gives what the shard writes, and once over nothing from a
state of ones, which gives the decay from its start through every token.  The
last values of both are the shard's affine map, which is exchanged
(`recurrence.incoming_state`); the incoming state then enters by one product.

Decays are multiplied up, not summed as logarithms: a sum of phases of complex
gates does not vanish as it grows, and would lose its digits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import recurrence


def shard_elementwise(
    local: Callable,
    x: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on this device's shard as part of the whole sequence.

    Args:
      local: `(x, log_decay, starts, initial) -> (h, state)`, the recurrence on
        one device.
      x: [B, T/P, ...].
      log_decay: like `x`; padding is masked out of both.
      segment_ids: int32 [B, T/P] or None.
      initial: [B, ...], in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (h [B, T/P, ...], state [B, ...] behind the whole sequence, the same on
      every device).
    """
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    with jax.named_scope("local"):
        h, write = local(x, log_decay, starts, jnp.zeros_like(initial))
    head, total = local(
        jnp.zeros_like(x), log_decay, starts, jnp.ones_like(initial)
    )
    affine = recurrence.Affine(decay_of_product(total), write)
    state = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )
    h = h + head * state[:, None]
    final = recurrence.apply(affine, state)
    return h, recurrence.last_device(final, axis_name)


def decay_of_product(product: jax.Array) -> recurrence.Decay:
    """The transition that multiplies by `product`, of size 0 to 1."""
    # Smaller ones are rounded to nothing anyway.
    nothing = jnp.abs(product) < jnp.finfo(product.dtype).tiny
    return recurrence.Decay(
        jnp.log(jnp.where(nothing, 1, product)), nothing.astype(jnp.int32)
    )


def shard_twice(
    local: Callable,
    decay: recurrence.Decay,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs an operator whose states are too many to keep on a shard.

    The incoming state would have to be read at every token with a decay of its
    own; a second walk from it costs the same and holds nothing.

    Args:
      local: `initial -> (y, state)`, the operator on this device's tokens.
      decay: of the whole shard, without the document borders in it.
      segment_ids: int32 [B, T/P] or None.
      initial: [B, ...], in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (y [B, T/P, ...], state [B, ...] behind the whole sequence, the same on
      every device).
    """
    _, write = local(jnp.zeros_like(initial))
    affine = recurrence.Affine(decay, write)
    if segment_ids is not None:
        cut = jnp.any(recurrence.segment_starts(segment_ids), axis=1)
        affine = recurrence.reset(affine, cut)
    state = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )
    y, final = local(state)
    return y, recurrence.last_device(final, axis_name)
