"""Decays between the tokens of a shard and its two ends.

Plain cumulative sums serve here: exp of them is used as it is, and where a sum
is large enough to lose digits its exponential vanishes.  Neither direction is
the difference of two sums.
"""

import jax
import jax.numpy as jnp

from seqjax import recurrence


def decay_from_start(
    log_decay: jax.Array | None,
    starts: jax.Array | None,
    dtype,
    read_before: bool = False,
) -> tuple[jax.Array | None, recurrence.Decay]:
    """Decay from in front of the shard to each read, and of all of it.

    Args:
      log_decay: [B, T/P, H], [B, T/P, H, K], or None for the identity.
      starts: bool [B, T/P], where a document starts, or None.
      dtype: of the result.
      read_before: whether tokens read the state before their own decay.

    Returns:
      (head [B, T/P, H or 1, K or 1] or None for 1, total).
    """
    head, total = None, recurrence.Decay()
    if log_decay is not None:
        decay = recurrence.decay_of(log_decay)
        assert decay.log is not None and decay.zeros is not None
        sums = jnp.cumsum(decay.log, axis=1)
        count = jnp.cumsum(decay.zeros, axis=1)
        total = recurrence.Decay(sums[:, -1], count[:, -1])
        if read_before:
            sums, count = _later(sums), _later(count)
        head = _exp(sums, count)
    if starts is None:
        return head, total
    # No read of a document reaches back over its start.
    alive = jnp.cumsum(starts.astype(jnp.int32), axis=1) == 0
    return _alive(head, alive, dtype), total.cut(~alive[:, -1:])


def decay_to_end(
    log_decay: jax.Array | None, starts: jax.Array | None, dtype
) -> jax.Array | None:
    """Decay of what each token writes, until the end of the shard.

    Args:
      log_decay: as of `decay_from_start`.
      starts: as of `decay_from_start`.
      dtype: of the result.

    Returns:
      [B, T/P, H or 1, K or 1], 0 in front of a document's start; None for 1.
    """

    def after(x):
        sums = jax.lax.cumsum(x, axis=1, reverse=True)
        return jnp.concatenate([sums[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)

    tail = None
    if log_decay is not None:
        decay = recurrence.decay_of(log_decay)
        tail = _exp(after(decay.log), after(decay.zeros))
    if starts is None:
        return tail
    return _alive(tail, after(starts.astype(jnp.int32)) == 0, dtype)


def _later(x):
    return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def _exp(sums, count):
    decay = jnp.where(count == 0, jnp.exp(sums), 0)
    return decay if decay.ndim == 4 else decay[..., None]


def _alive(decay, alive, dtype):
    alive = alive[:, :, None, None]
    return jnp.where(alive, 1 if decay is None else decay, 0).astype(dtype)
