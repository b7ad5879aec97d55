"""Which keys each query sees, as an interval of ranks.

The rank of a real token is how many real tokens of its row came before it, in
this call and in the cache.  Documents, windows, causality and forget gates of
-inf all cut out intervals, so what a query sees is one interval [first, last]
of ranks.  Padding and empty slots have rank -1, in no interval; a padding query
has an empty interval.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence

PADDING = -1


class Tokens(NamedTuple):
    """Where the tokens of a call stand in their rows.

    The leading axis is 1 where all rows are alike.

    Attributes:
      rank: int32 [B, T], -1 at padding.
      start: int32 [B, T], rank of the first token of each token's document (0
        in a document that continues the cache).
      length: int32 [B], real tokens of the row, those of the cache included.
      cached: int32 [B, S], ranks of cached tokens that a continuing document
        sees, -1 elsewhere; None without a cache.
    """

    rank: jax.Array
    start: jax.Array
    length: jax.Array
    cached: jax.Array | None

    @property
    def real(self) -> jax.Array:
        """bool [B, T]."""
        return self.rank >= 0


class Bands(NamedTuple):
    """What is seen: query i sees key j where first_i <= rank_j <= last_i.

    Attributes:
      first: int32 [B, T, H]; B and H may be 1.
      last: int32, shaped as `first`.
      rank: int32 [B, L, H] of the keys, cache first; B and H as in `first`.
    """

    first: jax.Array
    last: jax.Array
    rank: jax.Array


def locate(segment_ids, length: int, cache) -> tuple[Tokens, jax.Array]:
    """Ranks and documents of the tokens of a call.

    Args:
      segment_ids: int32 [B, T] or None: all tokens real and of one document,
        the one the cache ends in.
      length: T.
      cache: `AttentionState` or None.

    Returns:
      (tokens, segment ids), the ids [B, T] or [1, T].
    """
    before = jnp.zeros((1,), jnp.int32)
    cached = None
    last_id = jnp.full((1,), PADDING, jnp.int32)
    if cache is not None:
        before = cache.length
        last_id, cached = last_document(cache)
    if segment_ids is None:
        rank = before[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        ids = jnp.broadcast_to(jnp.maximum(last_id, 0)[:, None], rank.shape)
        total = before + length
        return Tokens(rank, jnp.zeros_like(rank), total, cached), ids
    real = segment_ids != PADDING
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    rank = jnp.where(real, before[:, None] + count - 1, PADDING)
    starts = recurrence.segment_starts(segment_ids)
    if cache is not None:
        changed = (segment_ids != last_id[:, None]) & (last_id[:, None] >= 0)
        starts |= real & (count == 1) & changed
    start = jax.lax.cummax(jnp.where(starts, rank, 0), axis=1)
    tokens = Tokens(rank, start, before + count[:, -1], cached)
    return tokens, segment_ids


def last_document(cache):
    """Id [B] of the document the cache ends in and ranks of its tokens."""
    batch, slots = cache.position.shape
    if slots == 0:
        return jnp.full((batch,), PADDING, jnp.int32), cache.position
    filled = cache.segment != PADDING
    position = jnp.where(filled, cache.position, PADDING)
    newest = jnp.argmax(position, axis=1, keepdims=True)
    last_id = jnp.take_along_axis(cache.segment, newest, axis=1)
    other = jnp.where(cache.segment != last_id, position, PADDING)
    border = jnp.max(other, axis=1, keepdims=True)
    return last_id[:, 0], jnp.where(position > border, position, PADDING)


def bands(
    tokens: Tokens,
    *,
    causal: bool,
    window: int | None,
    log_decay: jax.Array | None,
    cached_log_decay: jax.Array | None,
) -> Bands:
    """What each query sees.

    Args:
      tokens: of this call.
      causal: whether a query sees only itself and tokens before it.
      window: tokens seen, itself included, or None.
      log_decay: [B, T, H] or None; -inf hides everything before the token.
      cached_log_decay: [B, S, H] or None; -inf hides the cached token.

    Returns:
      `Bands`.
    """
    rank, first, last = tokens.rank, tokens.start, tokens.rank
    if not causal:
        # The last rank of the document, read from its end.
        last = jnp.max(rank, axis=1, keepdims=True)
        ends = jnp.where(
            tokens.start[:, 1:] != tokens.start[:, :-1],
            tokens.start[:, 1:] - 1,
            last,
        )
        ends = jnp.concatenate([ends, last], axis=1)
        last = jax.lax.cummin(ends, axis=1, reverse=True)
    if window is not None:
        first = jnp.maximum(first, rank - (window - 1))
    first = jnp.where(tokens.real, first, 1)
    last = jnp.where(tokens.real, last, 0)
    first, last, rank = first[..., None], last[..., None], rank[..., None]
    cached = None if tokens.cached is None else tokens.cached[..., None]
    if log_decay is not None:
        cut = recurrence.vanishes(log_decay) & tokens.real[..., None]
        cut = jax.lax.cummax(jnp.where(cut, rank, 0), axis=1)
        first = jnp.maximum(first, cut)
        last = jnp.broadcast_to(last, first.shape)
        rank = jnp.broadcast_to(rank, first.shape)
        if cached is not None and cached_log_decay is not None:
            cached = jnp.where(
                recurrence.vanishes(cached_log_decay), -1, cached
            )
    if cached is not None:
        rank = jnp.concatenate([cached, rank], axis=1)
    return Bands(first, last, rank)


def stored(
    tokens: Tokens, ranks: jax.Array, log_decay: jax.Array | None
) -> Bands:
    """What queries see whose own keys are in the cache already.

    Args:
      tokens: of this call.
      ranks: int32 [B, S] of the cached keys of the last document.
      log_decay: [B, S, H] of the cache, or None; -inf hides a key.

    Returns:
      `Bands`.
    """
    first = jnp.where(tokens.real, tokens.start, 1)[..., None]
    last = jnp.where(tokens.real, tokens.rank, 0)[..., None]
    rank = ranks[..., None]
    if log_decay is not None:
        rank = jnp.where(recurrence.vanishes(log_decay), PADDING, rank)
    return Bands(first, last, rank)
