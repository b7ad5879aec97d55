"""What a call of the model accepts, and how many tokens its cache takes."""

from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from seqjax import ops
from seqjax.models import cache as cache_lib
from seqjax.models import config as config_lib
from seqjax.recurrence import segments

Config = config_lib.LanguageModelConfig
ModelCache = cache_lib.ModelCache


def check_call(
    config: Config,
    tokens: jax.Array,
    cache: ModelCache | None,
    segment_ids: jax.Array | None,
) -> None:
    """Requires tokens [B, T], T >= 1, ids alike, and a cache that has room.

    Raises:
      ValueError: naming the argument, what came and what is accepted.
    """
    if _integers(tokens) is None or len(tokens.shape) != 2:
        raise ValueError(f"tokens must be int32 [B, T], got {_said(tokens)}")
    if tokens.shape[1] == 0:
        raise ValueError(
            f"tokens must be int32 [B, T] with T at least 1, got "
            f"{_said(tokens)}; leave the call out where there is no token"
        )
    if segment_ids is not None and _integers(segment_ids) != tokens.shape:
        raise ValueError(
            f"segment_ids must be int32 {list(tokens.shape)} like tokens, got "
            f"{_said(segment_ids)}"
        )
    if cache is None:
        return
    if not isinstance(cache, ModelCache) or len(cache.states) != config.depth:
        raise ValueError(
            f"cache must be a ModelCache of {config.depth} layers, got "
            f"{_said(cache)}; take it from model.init_cache or an earlier call"
        )
    if cache.segment.shape != tokens.shape[:1]:
        raise ValueError(
            f"cache must have one row for each of tokens, got "
            f"{cache.segment.shape[0]} rows for {tokens.shape[0]}"
        )
    _check_room(config, cache, segment_ids, tokens.shape)


def capacity(config: Config, cache: ModelCache) -> int | None:
    """Tokens a row of the cache may hold; None where there is no bound."""
    state = _bounded(config, cache)
    return None if state is None else state.k.shape[1]


def written(config: Config, cache: ModelCache) -> jax.Array | None:
    """Tokens that each row [B] holds; None where there is no bound."""
    state = _bounded(config, cache)
    return None if state is None else state.length


def _bounded(config: Config, cache: ModelCache) -> ops.AttentionState | None:
    for kind, state in zip(config.pattern, cache.states, strict=False):
        parts = cache_lib.split(state)
        found = config.options(kind).bounded(parts.mixer)
        if found is None and parts.shared is not None:
            found = config.shared_block.bounded(parts.shared)
        if found is not None:
            return found
    return None


def _check_room(
    config: Config,
    cache: ModelCache,
    segment_ids: jax.Array | None,
    shape: tuple[int, ...],
) -> None:
    """Refuses tokens past the capacity of softmax attention.

    Counts real tokens, behind those that rows going on with their document
    have written.  Under `jit` these numbers are unknown, and T is all that can
    be held against the capacity.
    """
    room, used = capacity(config, cache), written(config, cache)
    if room is None:
        return
    known = (used, segment_ids, cache.segment)
    if any(isinstance(x, core.Tracer) for x in known):
        if shape[1] > room:
            raise ValueError(
                f"tokens has {shape[1]} positions, but the cache holds {room};"
                f" make it with model.init_cache(batch, capacity) of at least"
                f" all tokens to come"
            )
        return
    used, new = np.asarray(used), np.full(shape[0], shape[1])
    if segment_ids is not None:
        ids = np.asarray(segment_ids)
        real = ids != segments.PADDING
        new = real.sum(axis=1)
        first = ids[np.arange(shape[0]), real.argmax(axis=1)]
        # A row that starts another document is emptied first.
        goes_on = (first == np.asarray(cache.segment)) | (new == 0)
        used = np.where(goes_on, used, 0)
    most = int(np.max(used + new, initial=0))
    if most > room:
        row = int(np.argmax(used + new))
        raise ValueError(
            f"tokens: row {row} has {new[row]} more tokens, but the cache"
            f" holds {room} and {used[row]} are written; make it with"
            f" model.init_cache(batch, capacity) of at least {most}"
        )


def _integers(x: Any) -> tuple[int, ...] | None:
    """The shape of an integer array, None for anything else."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        return None
    return x.shape


def _said(x: Any) -> str:
    if isinstance(x, ModelCache):
        return f"one of {len(x.states)}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype} {list(x.shape)}"
    return type(x).__name__
