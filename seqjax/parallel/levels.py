"""Sequence parallelism of states on levels: log-linear attention.

Which levels a shard writes depends on where its tokens stand in their document.
So two things move: first how many tokens of the current document stand in front
of each shard, two numbers a row (nothing where rows are whole documents), then
the maps of the levels.  Neither is needed to run a shard from no state but the
count, and what the incoming levels add is a product with q:

    o = o_local + scale sum over l of lambda_t[max(l, l_t)] head_t S_in[l]^T q_t

with l_t the level on which token t sees the token before the shard.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.parallel import shard_decays
from seqjax.recurrence import levels as transitions

# A count is exchanged as two floats, each far below 2^24.
_HALF = 2**12


def incoming_count(
    count: jax.Array,
    segment_ids: jax.Array | None,
    length: int,
    axis_name: str,
    exchange: str | None = None,
) -> jax.Array:
    """Tokens of the current document in front of this device's shard.

    Args:
      count: int32 [B], tokens of it in front of the whole sequence.
      segment_ids: int32 [B, T/P] or None.
      length: T/P.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      int32 [B]; 0 where a document starts with this shard's first real token.
    """
    if segment_ids is None:
        return count + length * jax.lax.axis_index(axis_name)
    real = segment_ids != recurrence.PADDING
    starts = recurrence.segment_starts(segment_ids)
    last = jnp.max(segment_ids, axis=1, keepdims=True, initial=-1)
    own = jnp.sum(real & (segment_ids == last), axis=1, dtype=jnp.int32)
    decay = recurrence.Decay(None, jnp.any(starts, axis=1))
    high, low = recurrence.incoming_state(
        recurrence.Affine(decay, _halves(own)),
        _halves(count),
        segment_ids,
        axis_name,
        exchange,
    )
    return high.astype(jnp.int32) * _HALF + low.astype(jnp.int32)


def shard_levels(
    local: Callable,
    q: jax.Array,
    log_decay: jax.Array,
    scales: jax.Array,
    seen: jax.Array,
    starts: jax.Array | None,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    scale: float,
    precision: jax.lax.Precision,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on this device's shard as part of the whole sequence.

    Args:
      local: `initial -> (y, levels)`, the operator on this device's tokens.
      q: [B, T/P, H, K].
      log_decay: [B, T/P, H].
      scales: [B, T/P, H, L].
      seen: int32 [B, T/P], level on which tokens see the one before the shard.
      starts: bool [B, T/P], where a document starts, or None.
      segment_ids: int32 [B, T/P] or None.
      initial: [B, H, L, K, V], in front of the whole sequence.
      scale: factor of q.
      precision: of matrix products.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (y [B, T/P, H, V], levels [B, H, L, K, V] behind the whole sequence, the
      same on every device).
    """
    with jax.named_scope("local"):
        y, write = local(jnp.zeros_like(initial))
    head, total = shard_decays.decay_from_start(log_decay, starts, y.dtype)
    affine = recurrence.Affine(transitions.Merge(total, seen[:, -1]), write)
    state = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )
    index = jnp.arange(scales.shape[-1]).reshape(1, 1, 1, -1)
    merged = jnp.take_along_axis(scales, seen[:, :, None, None], axis=-1)
    above = index > seen[:, :, None, None]
    weights = head * jnp.where(above, scales, merged)

    @jax.checkpoint
    def add(y, level):
        weight, state = level
        read = jnp.einsum(
            "bthk,bhkv->bthv", weight[..., None] * q, state, precision=precision
        )
        return y + scale * read, None

    by_level = jnp.moveaxis(weights, -1, 0), jnp.moveaxis(state, 2, 0)
    y, _ = jax.lax.scan(add, y, by_level)
    final = recurrence.apply(affine, state)
    return y, recurrence.last_device(final, axis_name)


def _halves(count):
    high, low = count // _HALF, count % _HALF
    return high.astype(jnp.float32), low.astype(jnp.float32)
