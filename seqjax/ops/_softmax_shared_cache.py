"""The cache of softmax attention after a sequence whose time is sharded.

Token number r of a row lies in slot r mod S, on whichever device it is: every
device writes its own tokens, and the sum over devices is the cache, the same on
all of them.  It holds S tokens on every device; nothing is exchanged where
nobody uses it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _softmax_gates
from seqjax.ops import _softmax_place


def next_state(
    cache, k, v, log_decay, place: _softmax_place.Place, axis_name: str
) -> Any:
    """The cache after the whole sequence, the same on every device.

    Every device writes its tokens to the slots that are theirs; the sum over
    devices is the cache.

    Args:
      cache: `AttentionState` in front of the sequence, in the dtypes of the
        result.
      k: [B, T/P, Hk, K].
      v: [B, T/P, Hk, V].
      log_decay: [B, T/P, H] in the accumulation dtype, or None.
      place: of this shard.
      axis_name: mesh axis along which time is sharded.
    """
    tokens = place.tokens
    batch, slots = cache.segment.shape
    length = k.shape[1]
    if slots == 0:
        total = jnp.broadcast_to(tokens.length, (batch,))
        return cache._replace(length=jax.lax.pmax(total, axis_name))
    rank = jnp.broadcast_to(tokens.rank, (batch, length))
    total = jnp.broadcast_to(tokens.length, (batch,))
    first = jax.lax.axis_index(axis_name) == 0
    old, new = {}, {}
    if log_decay is not None:
        held, own = _decays_behind(cache, log_decay, place, axis_name)
        old |= dict(zip(("log_decay", "log_decay_low"), held, strict=True))
        new |= dict(zip(("log_decay", "log_decay_low"), own, strict=True))
    old |= {
        "k": cache.k,
        "v": cache.v,
        # One more, so that nothing is 0.
        "segment": cache.segment + 1,
        "position": cache.position + 1,
    }
    new |= {
        "k": k,
        "v": v,
        "segment": jnp.broadcast_to(place.ids, rank.shape) + 1,
        "position": rank + 1,
    }
    newest = rank >= total[:, None] - slots
    slot = jnp.where(
        newest & (rank >= 0),
        rank % slots,
        slots + jnp.arange(length)[None],
    )
    rows = jnp.arange(batch)[:, None]
    # The number of the newest token that a slot may hold.
    youngest = total[:, None] - 1
    youngest -= (youngest - jnp.arange(slots)[None]) % slots
    kept = first & (youngest < cache.length[:, None])

    def merge(old, new):
        where = kept.reshape(kept.shape + (1,) * (old.ndim - 2))
        mine = jnp.where(where, old, jnp.zeros_like(old))
        return mine.at[rows, slot].set(
            new.astype(old.dtype), mode="drop", unique_indices=True
        )

    merged = {n: merge(old[n], new[n]) for n in old}
    merged["length"] = jnp.where(first, total, 0)
    merged = jax.lax.psum(merged, axis_name)
    merged["segment"] -= 1
    merged["position"] -= 1
    return cache._replace(**merged)


def _decays_behind(cache, log_decay, place, axis_name):
    """Sums of log gates behind each token: cached and new, (high, low) each."""
    tokens = place.tokens
    real = tokens.real[..., None]
    document = place.document[:, None]
    alive = (tokens.rank >= document)[..., None] & real
    cut = recurrence.vanishes(log_decay) & alive
    opens = (tokens.rank == tokens.start)[..., None]
    high, low = _softmax_gates.cumulative(
        _softmax_gates.finite(log_decay, alive & ~opens), reverse=True
    )
    low = jax.lax.stop_gradient(low)
    cuts = jnp.cumsum(cut[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    own = jnp.stack([high[:, 0], low[:, 0], cuts[:, 0].astype(high.dtype)])
    shards = jax.lax.all_gather(own, axis_name)  # [P, 3, B, H]
    device = jax.lax.axis_index(axis_name)
    later = jnp.arange(shards.shape[0]) > device

    def total(taken):
        taken = taken[:, None, None]
        sums = (jnp.zeros_like(high[:, 0]),) * 2

        def step(sums, shard):
            return _softmax_gates.add(sums, (shard[0], shard[1])), None

        sums, _ = jax.lax.scan(
            step,
            sums,
            jnp.where(taken[:, None], shards[:, :2], 0),
            reverse=True,
        )
        gone = jnp.sum(jnp.where(taken, shards[:, 2], 0), axis=0) > 0
        return tuple(x[:, None] for x in sums), gone[:, None]

    behind = tuple(
        jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0))) for x in (high, low)
    )
    cuts_behind = jnp.pad(cuts[:, 1:], ((0, 0), (0, 1), (0, 0)))
    after, gone = total(later)
    new = _settle(
        _softmax_gates.add(behind, after), alive, (cuts_behind > 0) | gone
    )
    every, gone = total(jnp.ones_like(later))
    seen = (tokens.cached >= 0) & (document == 0)
    held = (_softmax_gates.finite(cache.log_decay), cache.log_decay_low)
    gone |= recurrence.vanishes(cache.log_decay)
    old = _softmax_gates.add(held, every)
    return _settle(old, seen[..., None], gone), new


def _settle(sums, alive, cut):
    high, low = sums
    high = jnp.where(cut, -jnp.inf, high)
    low = jnp.where(cut, 0, low)
    return jnp.where(alive, high, 0), jnp.where(alive, low, 0)
