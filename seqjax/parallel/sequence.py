"""Sequence parallelism of additive operators, written once for all of them.

A shard of the sequence is run from a zero state, which needs no other device.
Its affine map is exchanged (`recurrence.incoming_state`), and the incoming
state adds what the earlier shards contribute:

    y   = y_local + scale * head_t * (q_t S_in)
    S_r = A_r S_in + B_r

Nothing local waits for the collective but that last product.  The exchange
carries its own derivative, with one collective backward; the rest is ordinary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import recurrence


def shard_additive(
    local: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    scale: float,
    precision: jax.lax.Precision,
    axis_name: str,
    exchange: str | None = None,
    read_before: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on this device's shard as part of the whole sequence.

    Args:
      local: `(q, k, v, log_decay, starts, initial) -> (y, state)`, the operator
        on one device, in the accumulation dtype.
      q: [B, T/P, G, K].
      k: [B, T/P, G, K].
      v: [B, T/P, H, V].
      log_decay: [B, T/P, H], [B, T/P, H, K], or None for the identity.
      segment_ids: int32 [B, T/P] or None; padding already masked out of the
        other inputs.
      initial: [B, H, K, V], in front of the whole sequence.
      scale: factor of q.
      precision: of the product with the incoming state.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.
      read_before: whether tokens read the state before their own decay.

    Returns:
      (y [B, T/P, H, V], state [B, H, K, V] behind the whole sequence, the same
      on every device).
    """
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    y, write = local(q, k, v, log_decay, starts, jnp.zeros_like(initial))

    head, total = _decay_from_start(
        log_decay, starts, initial.dtype, read_before
    )
    affine = recurrence.Affine(total, write)
    state = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )

    groups = q.shape[2]
    batch, heads, key, value = state.shape
    repeat = heads // groups
    grouped = state.reshape(batch, groups, repeat, key, value)
    q = q.astype(state.dtype)[:, :, :, None]
    if head is None:
        q = jnp.repeat(q, repeat, axis=3)
    else:
        shape = (*head.shape[:2], heads, head.shape[-1])
        head = jnp.broadcast_to(head, shape)
        q = head.reshape(*shape[:2], groups, repeat, -1) * q
    read = jnp.einsum(
        "btgrk,bgrkv->btgrv", q, grouped, precision=precision
    ).reshape(y.shape)
    y = y + scale * read
    final = recurrence.apply(affine, state)
    return y, recurrence.last_device(final, axis_name)


def shard_dense(
    local: Callable,
    v: jax.Array,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs `local` on this device's shard as part of the whole sequence.

    For rules that are linear in the values and the state, and whose transition
    mixes the keys.  K more value channels, nothing written and the identity as
    their state, carry the product of the transitions: what each token reads of
    the incoming state, and the map of the whole shard.

    Args:
      local: `(v, initial) -> (y, state)`, the operator on one device.
      v: [B, T/P, H, V] (or several writes a token) in the accumulation dtype.
      segment_ids: int32 [B, T/P] or None.
      initial: [B, H, K, V], in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (y [B, T/P, H, V], state [B, H, K, V] behind the whole sequence, the same
      on every device).
    """
    key, value = initial.shape[-2:]
    width = ((0, 0),) * 3 + ((0, key),)
    one = jnp.eye(key, value + key, value, dtype=initial.dtype)
    start = jnp.zeros_like(jnp.pad(initial, width)) + one.reshape(
        1, 1, *one.shape
    )
    y, state = local(jnp.pad(v, width), start)
    y, reads = y[..., :value], y[..., value:]
    write, matrix = state[..., :value], state[..., value:]
    affine = recurrence.Affine(recurrence.Dense(matrix), write)
    incoming = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )
    y = y + jnp.einsum(
        "bthk,bhkv->bthv",
        reads,
        incoming,
        precision=jax.lax.Precision.HIGHEST,
    )
    final = recurrence.apply(affine, incoming)
    return y, recurrence.last_device(final, axis_name)


def _decay_from_start(log_decay, starts, dtype, read_before):
    """Decay from in front of the shard to each read, and of all of it.

    Plain cumulative sums serve here: exp of them is used as it is, and where
    a sum is large enough to lose digits its exponential vanishes.

    Returns:
      (head [B, T/P, H or 1, K or 1] or None, total).
    """

    def to_reads(sums):
        if not read_before:
            return sums
        return jnp.pad(
            sums[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (sums.ndim - 2)
        )

    head = None
    total = recurrence.Decay()
    if log_decay is not None:
        decay = recurrence.decay_of(log_decay)
        assert decay.log is not None and decay.zeros is not None
        sums = jnp.cumsum(decay.log, axis=1)
        count = jnp.cumsum(decay.zeros, axis=1)
        head = jnp.where(to_reads(count) == 0, jnp.exp(to_reads(sums)), 0)
        head = head.reshape(*log_decay.shape[:3], -1)
        total = recurrence.Decay(sums[:, -1], count[:, -1])
    if starts is not None:
        # No read of a document reaches back over its start.
        alive = jnp.cumsum(starts.astype(jnp.int32), axis=1) == 0
        alive = alive[:, :, None, None]
        head = jnp.where(alive, 1 if head is None else head, 0).astype(dtype)
        total = total.cut(~alive[:, -1, :, 0])
    return head, total
