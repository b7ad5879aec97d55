"""Sequence parallelism of sums under exponential gates, in one message.

A shard is run from an empty state, with its own running maximum m0, and its map
(`recurrence.Stabilised`) is exchanged: maximum and sums together.  Then the
maximum of the whole past is known, m_t >= m0_t, and what the shard's tokens
read is

    exp(m0_t - m_t) (what they read of the shard) + head_t (of the state S_in)

with head_t the decay of S_in, divided by exp of the incoming maximum, until t.
These factors are numbers a token and head; neither the shard's own run nor its
map waits for the message.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.parallel import sequence
from seqjax.parallel import shard_decays
from seqjax.recurrence import two_floats


class Entered(NamedTuple):
    """How the state in front of a shard enters it.

    Attributes:
      m: [B, T/P, ...], the running maximum of the whole past.
      kept: [B, T/P, ...], factor of what is read of the shard alone.
      head: as of `shard_decays.decay_from_start`, of what is read of `sums`.
      sums: the incoming S.
      final: (m, S) behind this shard.
    """

    m: jax.Array
    kept: jax.Array
    head: jax.Array
    sums: Any
    final: tuple[jax.Array, Any]


def enter(
    own: recurrence.Stabilised,
    initial: tuple[jax.Array, Any],
    maps: recurrence.MaxPlus,
    log_decay: jax.Array | None,
    segment_ids: jax.Array | None,
    *,
    axis_name: str,
    exchange: str | None = None,
) -> Entered:
    """Exchanges the shards' maps.

    Args:
      own: this shard's map, without the document borders at its ends.
      initial: (m, S) in front of the whole sequence.
      maps: of `recurrence.prefix_maxima` over this shard, [B, T/P, ...].
      log_decay: [B, T/P, ...], decay of the true sums; None for none.
      segment_ids: int32 [B, T/P] or None.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      `Entered`.
    """
    entering, sums = recurrence.incoming_stabilised(
        own, initial, segment_ids, axis_name, exchange
    )
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    before, m = recurrence.running_maxima(maps, entering, starts)
    head, _ = shard_decays.decay_from_start(
        recurrence.log_keep(log_decay, before, m), starts, m.dtype
    )
    assert head is not None  # there is a decay
    still = jax.lax.stop_gradient(maps.i)
    kept = recurrence.stable_weight(still, m)
    return Entered(m, kept, head, sums, own.apply((entering, sums)))


def shard_stabilised(
    local: Callable,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array | None,
    initial: tuple[jax.Array, jax.Array],
    *,
    maps: recurrence.MaxPlus,
    true_decay: jax.Array,
    scale: float,
    precision: jax.lax.Precision,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs `local` on this device's shard as part of the whole sequence.

    Args:
      local: as of `sequence.shard_additive`.
      q: [B, T/P, G, K].
      k: [B, T/P, G, K].
      v: [B, T/P, H, V], divided by exp of the shard's own running maximum.
      log_decay: [B, T/P, H], of sums divided by it.
      segment_ids: int32 [B, T/P] or None; padding already masked out of the
        other inputs.
      initial: (m [B, H], S [B, H, K, V]), in front of the whole sequence.
      maps: of `recurrence.prefix_maxima` over this shard, [B, T/P, H].
      true_decay: [B, T/P, H], of sums divided by nothing.
      scale: factor of q.
      precision: of matrix products.
      axis_name: mesh axis along which time is sharded.
      exchange: as of `recurrence.incoming_state`.

    Returns:
      (y [B, T/P, H, V], divided by exp(m); m [B, T/P, H]; (m, S) behind the
      whole sequence, the same on every device).
    """
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    empty = jnp.zeros_like(initial[1])
    with jax.named_scope("local"):
        y, _ = local(q, k, v, log_decay, starts, empty)
    tail = shard_decays.decay_to_end(log_decay, starts, empty.dtype)
    update = sequence.write(k, v, tail, empty.dtype, precision)
    gates = recurrence.decay_of(true_decay)
    assert gates.log is not None and gates.zeros is not None
    log, low = two_floats.total(gates.log)
    total = recurrence.Decay(log, jnp.sum(gates.zeros, axis=1))
    if starts is not None:
        total = total.cut(jnp.any(starts, axis=1, keepdims=True))
    entered = enter(
        recurrence.Stabilised(total, low, maps.i[:, -1], update),
        initial,
        maps,
        true_decay,
        segment_ids,
        axis_name=axis_name,
        exchange=exchange,
    )
    read = sequence.read(q, entered.head, entered.sums, precision)
    y = entered.kept[..., None] * y + scale * read
    return y, entered.m, recurrence.last_device(entered.final, axis_name)
