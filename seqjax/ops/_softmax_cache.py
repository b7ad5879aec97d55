"""State of softmax attention: a cache of keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _softmax_bands
from seqjax.ops import _softmax_gates


class AttentionState(NamedTuple):
    """Keys and values of past tokens, and what is known about them.

    Token number r of a row (counting real tokens from 0) lies in slot r mod S.
    With a window of w, S = w - 1, and what is overwritten is not needed again.
    Without one S is the capacity, and a row that grows longer loses its oldest
    tokens: check lengths beforehand, where they are known.

    With a forget gate the state also holds the sum of the log gates of all
    tokens behind each cached one.  Those sums move with every call, like a
    decaying state, and need no anchor that would grow without bound; a gate of
    -inf behind a token makes its sum -inf.

    Attributes:
      k: [B, S, Hk, K], in the dtype of k.
      v: [B, S, Hk, V], in the dtype of v.
      segment: int32 [B, S], segment id, -1 in an empty slot.
      position: int32 [B, S], number of the token in its row, -1 if empty.
      length: int32 [B], real tokens of the row so far, forgotten ones included.
      log_decay: [B, S, H], sum of the log gates after each cached token, H the
        query heads, 0 for tokens of documents that have ended; None without a
        forget gate.
      log_decay_low: [B, S, H], the rounding error of `log_decay` (a constant
        for derivatives); None without a forget gate.
    """

    k: jax.Array
    v: jax.Array
    segment: jax.Array
    position: jax.Array
    length: jax.Array
    log_decay: jax.Array | None = None
    log_decay_low: jax.Array | None = None


def attention_cache(
    batch: int,
    capacity: int | None,
    heads: int,
    key_dim: int,
    value_dim: int | None = None,
    *,
    window: int | None = None,
    gate_heads: int | None = None,
    dtype=jnp.float32,
) -> AttentionState:
    """An empty cache for `softmax_attention`.

    Args:
      batch: B.
      capacity: tokens it must hold; may be None with a window, which holds
        window - 1 tokens whatever the capacity.
      heads: Hk, heads of k and v.
      key_dim: K.
      value_dim: V; None means K.
      window: the window of the attention, or None.
      gate_heads: H, query heads, where the attention has a forget gate; None
        where it has none.
      dtype: of k and v.

    Returns:
      `AttentionState` with S = window - 1, or S = capacity.

    Raises:
      ValueError: a size or dtype that is not accepted, or neither capacity
        nor window.
    """
    if window is None and capacity is None:
        raise ValueError(
            "attention_cache: capacity must be given where window is None"
        )
    dtype = _contract.check_state_dtype(
        "attention_cache", dtype, jnp.float32, "dtype"
    )
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    sizes = {
        "batch": (batch, 0),
        "capacity": (capacity, 0),
        "heads": (heads, 1),
        "key_dim": (key_dim, 1),
        "value_dim": (value_dim, 1),
        "window": (window, 1),
        "gate_heads": (gate_heads, 1),
    }
    for name, (size, least) in sizes.items():
        if size is not None and (type(size) is not int or size < least):
            raise ValueError(
                f"attention_cache: {name} must be an int of at least {least}, "
                f"got {size!r}"
            )
    slots = capacity if window is None else window - 1
    shape = (batch, slots)
    value_dim = key_dim if value_dim is None else value_dim
    empty = jnp.full(shape, _softmax_bands.PADDING, jnp.int32)
    gate = None
    if gate_heads is not None:
        gate = jnp.zeros((*shape, gate_heads), wide)
    return AttentionState(
        k=jnp.zeros((*shape, heads, key_dim), dtype),
        v=jnp.zeros((*shape, heads, value_dim), dtype),
        segment=empty,
        position=empty,
        length=jnp.zeros((batch,), jnp.int32),
        log_decay=gate,
        log_decay_low=gate,
    )


def store(
    cache: AttentionState,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    tokens: _softmax_bands.Tokens,
    segment_ids: jax.Array,
) -> AttentionState:
    """The cache after the tokens of a call.

    Args:
      cache: before the call, varying over the mesh axes of the inputs.
      k: [B, T, Hk, K].
      v: [B, T, Hk, V].
      log_decay: [B, T, H] in the accumulation dtype, or None.
      tokens: of this call.
      segment_ids: int32 [B, T].

    Returns:
      `AttentionState` in the dtypes of `cache`.
    """
    batch, slots = cache.segment.shape
    length = k.shape[1]
    rank = jnp.broadcast_to(tokens.rank, (batch, length))
    total = jnp.broadcast_to(tokens.length, (batch,))
    if slots == 0:
        return cache._replace(length=total)
    # Only the last S tokens are written, each to its own slot; the others go
    # to slots that do not exist, all different, and are dropped.
    newest = rank >= total[:, None] - slots
    slot = jnp.where(
        newest & (rank >= 0), rank % slots, slots + jnp.arange(length)[None]
    )
    rows = jnp.arange(batch)[:, None]

    def write(old, new):
        return old.at[rows, slot].set(
            new.astype(old.dtype), mode="drop", unique_indices=True
        )

    ids = jnp.broadcast_to(segment_ids, rank.shape)
    written = cache._replace(
        k=write(cache.k, k),
        v=write(cache.v, v),
        segment=write(cache.segment, ids),
        position=write(cache.position, rank),
        length=total,
    )
    if log_decay is None:
        return written
    old, new = _decays_behind(cache, log_decay, tokens)
    high, low = (write(o, n) for o, n in zip(old, new, strict=True))
    return written._replace(log_decay=high, log_decay_low=low)


def _decays_behind(cache, log_decay, tokens):
    """Sums of log gates behind each token: cached and new, (high, low) each."""
    real = tokens.real[..., None]
    document = tokens.start[:, -1:]  # where the last document starts
    alive = (tokens.rank >= document)[..., None] & real
    cut = recurrence.vanishes(log_decay) & alive
    # A document's first gate acts on nothing that is left.
    opens = (tokens.rank == tokens.start)[..., None]
    sums = _softmax_gates.cumulative(
        _softmax_gates.finite(log_decay, alive & ~opens), reverse=True
    )
    cuts = jnp.cumsum(cut[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
    behind = [jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0))) for x in sums]
    cuts_behind = jnp.pad(cuts[:, 1:], ((0, 0), (0, 1), (0, 0)))
    new = _settle(behind, alive, cuts_behind > 0)
    seen = (tokens.cached >= 0) & (document == 0)
    gone = recurrence.vanishes(cache.log_decay)
    held = (
        _softmax_gates.finite(cache.log_decay),
        cache.log_decay_low,
    )
    old = _softmax_gates.add(held, tuple(x[:, :1] for x in sums))
    return _settle(old, seen[..., None], gone | (cuts[:, :1] > 0)), new


def _settle(sums, alive, cut):
    high, low = sums
    high = jnp.where(cut, -jnp.inf, high)
    low = jnp.where(cut, 0, low)
    return jnp.where(alive, high, 0), jnp.where(alive, low, 0)
