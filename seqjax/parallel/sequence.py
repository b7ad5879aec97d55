"""Sequence parallelism of attention-like operators, one function a kind.

A shard of the sequence is run from a zero state, which needs no other device.
Its affine map is exchanged (`recurrence.incoming_state`), and the incoming
state adds what the earlier shards contribute:

    y   = y_local + scale * head_t * (q_t S_in)
    S_r = A_r S_in + B_r,                       B_r = sum of tail_t k_t v_t^T

Additive rules write B_r as one product over the whole shard, which costs K V
a token and takes nothing from the local run: that run neither waits for the
collective nor is waited for, forward and backward, and hides it.  Rules that
erase get their map from the same walk as their output; there only the output
is free of the collective.  The exchange carries its own derivative; the rest is
ordinary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.parallel import shard_decays


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
    with jax.named_scope("local"):
        y, _ = local(q, k, v, log_decay, starts, jnp.zeros_like(initial))

    dtype = initial.dtype
    head, total = shard_decays.decay_from_start(
        log_decay, starts, dtype, read_before
    )
    tail = shard_decays.decay_to_end(log_decay, starts, dtype)
    affine = recurrence.Affine(total, write(k, v, tail, dtype, precision))
    state = recurrence.incoming_state(
        affine, initial, segment_ids, axis_name, exchange
    )
    y = y + scale * read(q, head, state, precision)
    final = recurrence.apply(affine, state)
    return y, recurrence.last_device(final, axis_name)


def read(
    q: jax.Array,
    head: jax.Array | None,
    state: jax.Array,
    precision: jax.lax.Precision,
) -> jax.Array:
    """What tokens read of the incoming state: q_t head_t S_in.

    Args:
      q: [B, T/P, G, K].
      head: [B, T/P, H or 1, K or 1], decay from in front of the shard; None
        for 1.
      state: [B, H, K, V].
      precision: of the product.

    Returns:
      [B, T/P, H, V].
    """
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
        q = head.reshape(*shape[:2], groups, repeat, shape[3]) * q
    y = jnp.einsum("btgrk,bgrkv->btgrv", q, grouped, precision=precision)
    return y.reshape(*y.shape[:2], heads, value)


def write(
    k: jax.Array,
    v: jax.Array,
    tail: jax.Array | None,
    dtype,
    precision: jax.lax.Precision,
) -> jax.Array:
    """What a shard writes: the sum of tail_t k_t v_t^T.

    Args:
      k: [B, T/P, G, K].
      v: [B, T/P, H, V].
      tail: [B, T/P, H or 1, K or 1], decay to the shard's end; None for 1.
      dtype: of accumulation.
      precision: of the product.

    Returns:
      [B, H, K, V].
    """
    k, v = k.astype(dtype), v.astype(dtype)
    batch, length, groups, key = k.shape
    heads, value = v.shape[2:]
    repeat = heads // groups
    k = k[:, :, :, None]
    v = v.reshape(batch, length, groups, repeat, value)
    if tail is not None:
        shape = (batch, length, heads, tail.shape[-1])
        tail = jnp.broadcast_to(tail, shape)
        tail = tail.reshape(batch, length, groups, repeat, shape[3])
        # A factor a head scales the values, a factor a channel the keys.
        if tail.shape[-1] == 1:
            v = tail * v
        else:
            k = tail * k
    if k.shape[3] < repeat:
        update = jnp.einsum(
            "btgk,btgrv->bgrkv", k[:, :, :, 0], v, precision=precision
        )
    else:
        update = jnp.einsum("btgrk,btgrv->bgrkv", k, v, precision=precision)
    return update.reshape(batch, heads, key, value)


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
    with jax.named_scope("local"):
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


def shard_dense_values(
    local: Callable,
    v: jax.Array,
    beta: jax.Array,
    segment_ids: jax.Array | None,
    initial: jax.Array,
    *,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`shard_dense` where each value channel has a transition of its own.

    A map is V matrices [K, K] a head.  They come from a walk over K V value
    channels, K times the work of the operator, of which only the end is kept;
    a second walk over nothing reads the incoming state.

    Args:
      local: `(v, beta, initial) -> (y, state)`, the operator on one device.
      v: [B, T/P, H, V] in the accumulation dtype.
      beta: like `v`.
      segment_ids: int32 [B, T/P] or None.
      initial: [B, H, K, V], in front of the whole sequence.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (y [B, T/P, H, V], state [B, H, K, V] behind the whole sequence, the same
      on every device).
    """
    batch, heads, key, value = initial.shape
    with jax.named_scope("local"):
        y, write = local(v, beta, jnp.zeros_like(initial))
    # Channel (n, j) of value channel n starts as the unit vector j.
    unit = jnp.tile(jnp.eye(key, dtype=initial.dtype), (1, value))
    wide = jnp.zeros((*v.shape[:3], value * key), v.dtype)
    _, ends = local(
        jnp.zeros_like(beta[..., :1]) + wide,
        jnp.repeat(beta, key, axis=-1),
        jnp.zeros_like(initial[..., :1]) + unit[None, None],
    )
    # [B, H, K, V K] to a matrix for each value channel.
    matrix = ends.reshape(batch, heads, key, value, key)
    matrix = jnp.moveaxis(matrix, 3, 2)
    to_columns = lambda s: s.swapaxes(2, 3)[..., None]  # noqa: E731
    affine = recurrence.Affine(recurrence.Dense(matrix), to_columns(write))
    incoming = recurrence.incoming_state(
        affine, to_columns(initial), segment_ids, axis_name, exchange
    )
    read, _ = local(jnp.zeros_like(v), beta, incoming[..., 0].swapaxes(2, 3))
    final = recurrence.apply(affine, incoming)[..., 0].swapaxes(2, 3)
    return y + read, recurrence.last_device(final, axis_name)
