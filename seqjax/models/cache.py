"""What a model carries from one call to the next.

Operator states hold no document id, so the cache does: where a call starts
another document than the one that a row is in, the row's states and positions
start afresh; within a call the operators reset by themselves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.recurrence import segments


class ModelCache(NamedTuple):
    """State of a language model after the tokens seen so far.

    Attributes:
      states: of every layer, first layer first, as its mixer returns it.
      segment: int32 [B], document id of the last real token, -1 if none yet.
      position: int32 [B], index in its document of the token to come, if it
        belongs to the same document.
    """

    states: tuple[Any, ...]
    segment: jax.Array
    position: jax.Array


class LayerState(NamedTuple):
    """State of a layer of which not only the mixer has one.

    Attributes:
      mixer: state of the mixer.
      mlp: of the channel mixer, or None.
      shared: of the shared block before the mixer, or None.
    """

    mixer: Any
    mlp: Any = None
    shared: Any = None


def split(state: Any) -> LayerState:
    """A layer's state by its parts."""
    return state if isinstance(state, LayerState) else LayerState(state)


def join(mixer: Any, mlp: Any = None, shared: Any = None) -> Any:
    """What `split` was given."""
    if mlp is None and shared is None:
        return mixer
    return LayerState(mixer, mlp, shared)


class Entry(NamedTuple):
    """A call as the layers see it.

    Attributes:
      segment_ids: int32 [B, T] or None: one document, no padding, no state.
      positions: int32 [B, T], index of each token in its document.
      restart: bool [B], rows whose states must be emptied first.
      fresh: bool [B], rows that no token has reached yet; None where all are.
      segment: int32 [B], to be kept in the cache.
      position: int32 [B], to be kept in the cache.
    """

    segment_ids: jax.Array | None
    positions: jax.Array
    restart: jax.Array
    fresh: jax.Array | None
    segment: jax.Array
    position: jax.Array


def enter(
    cache: ModelCache | None,
    segment_ids: jax.Array | None,
    shape: tuple[int, ...],
) -> Entry:
    """Positions and document changes of a call.

    Args:
      cache: what the call continues, or None.
      segment_ids: int32 [B, T]; None is one document without padding, with a
        cache the one that each row is in.
      shape: (B, T).
    """
    batch, length = shape
    if segment_ids is None and cache is None:
        steps = jnp.arange(length, dtype=jnp.int32)[None]
        return Entry(
            None,
            jnp.broadcast_to(steps, shape),
            jnp.zeros((batch,), bool),
            None,
            jnp.zeros((batch,), jnp.int32),
            jnp.full((batch,), length, jnp.int32),
        )
    before = jnp.full((batch,), segments.PADDING, jnp.int32)
    offset = jnp.zeros((batch,), jnp.int32)
    if cache is not None:
        before, offset = cache.segment, cache.position
    if segment_ids is None:
        # An id that no document has had yet: 0.
        segment_ids = jnp.broadcast_to(jnp.maximum(before, 0)[:, None], shape)
    real = segment_ids != segments.PADDING
    any_real = jnp.any(real, axis=1)
    first = jnp.take_along_axis(
        segment_ids, jnp.argmax(real, axis=1)[:, None], axis=1
    )[:, 0]
    restart = any_real & (before != segments.PADDING) & (first != before)
    offset = jnp.where(restart, 0, offset)
    starts = segments.segment_starts(segment_ids).astype(jnp.int32)
    later = jnp.cumsum(starts, axis=1) > 0  # no longer the first document
    positions = segments.real_positions(segment_ids) + jnp.where(
        later, 0, offset[:, None]
    )
    # Padding repeats the position of the last real token before it.
    return Entry(
        segment_ids,
        positions,
        restart,
        None if cache is None else cache.segment == segments.PADDING,
        jnp.where(any_real, jnp.max(segment_ids, axis=1), before),
        jnp.where(any_real, positions[:, -1] + 1, offset),
    )


def stack(states: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """States of all layers as one a place of the pattern, repeats stacked.

    Args:
      states: one a layer, leaves [B, ...].
      size: layers of the pattern.

    Returns:
      `size` states, leaves [repeats, B, ...].
    """
    return tuple(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *states[place::size])
        for place in range(size)
    )


def unstack(states: tuple[Any, ...], repeats: int) -> tuple[Any, ...]:
    """What `stack` was given."""
    return tuple(
        jax.tree.map(lambda leaf, i=i: leaf[i], state)
        for i in range(repeats)
        for state in states
    )


def empty_rows(state: Any, empty: Any, rows: jax.Array) -> Any:
    """Sets some rows of a layer's state to the empty state.

    Args:
      state: leaves [B, ...].
      empty: the state before any token, leaves of one row that broadcast.
      rows: bool [B].
    """

    def one(leaf: jax.Array, start: jax.Array) -> jax.Array:
        where = rows.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(where, start, leaf)

    if isinstance(state, ops.AttentionState):
        # Keys and values that belong to no document have weight 0: leave
        # the large arrays in place.
        kept = state.k, state.v
        state = jax.tree.map(
            one, state._replace(k=None, v=None), empty._replace(k=None, v=None)
        )
        return state._replace(k=kept[0], v=kept[1])
    if hasattr(state, "_fields"):
        parts = zip(state, empty, strict=True)
        return type(state)(*(empty_rows(*pair, rows) for pair in parts))
    return jax.tree.map(one, state, empty)
