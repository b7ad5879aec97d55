"""Prefill of prompts and decoding of what follows, a compiled call each.

The prompt is read in chunk form at once; then tokens are drawn one at a time
inside one compiled loop.  Memory is constant for recurrent layers; softmax
attention fills the cache that `model.init_cache(batch, capacity)` made.
"""

import functools
from typing import NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from seqjax import models
from seqjax.generation import sampling

NOTHING = -1  # what a row emits after its stop token


class DecodeCache(NamedTuple):
    """All that decoding needs of the past.

    Attributes:
      model: cache of the model, holding every token read or drawn so far.
      logits: float32 [B, vocab], of the token to draw next.
      done: bool [B], rows that have drawn a stop token.
    """

    model: models.ModelCache
    logits: jax.Array
    done: jax.Array


def prefill(
    model: models.LanguageModel,
    params: dict,
    tokens: jax.Array,
    cache: models.ModelCache,
    segment_ids: jax.Array | None = None,
) -> DecodeCache:
    """Reads prompts.

    Args:
      model: the language model.
      params: its variables.
      tokens: int32 [B, T].
      cache: of `model.init_cache`, or `.model` of an earlier `DecodeCache`.
      segment_ids: int32 [B, T], -1 padding; every row needs a real token.
        None: no padding, and each row stays in its document.

    Returns:
      `DecodeCache` with the logits after each row's last real token.

    Raises:
      ValueError: wrong shapes, a row without a real token, or more tokens
        than the cache has room for.
    """
    if segment_ids is not None and not isinstance(segment_ids, core.Tracer):
        real = np.any(np.asarray(segment_ids) >= 0, axis=1)
        if not real.all():
            raise ValueError(
                f"segment_ids must hold a real token (>= 0) in every row, got "
                f"none in row {int(np.argmin(real))}"
            )
    model.check_room(cache, segment_ids, tokens.shape)
    return _prefill(model, params, tokens, cache, segment_ids)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model, params, tokens, cache, segment_ids) -> DecodeCache:
    logits, cache = model.apply(
        params, tokens, cache, segment_ids, method="last_logits"
    )
    return DecodeCache(cache, logits, jnp.zeros(tokens.shape[:1], bool))


def decode(
    model: models.LanguageModel,
    params: dict,
    cache: DecodeCache,
    n: int,
    sampler: sampling.Sampler = sampling.Sampler(),  # noqa: B008
    key: jax.Array | None = None,
    stop_tokens: tuple[int, ...] = (),
) -> tuple[jax.Array, DecodeCache]:
    """Draws n tokens a row; call it again with the cache for the next n.

    Row i draws the token at a position with fold_in(fold_in(key, i), position),
    so the same tokens come whatever n is.  The compiled loop ends early when
    all rows are done.

    Args:
      model: the language model.
      params: its variables.
      cache: of `prefill` or of the call before.
      n: tokens to draw; another n compiles another program.
      sampler: how to draw; greedy by default.
      key: random key; None only where the sampler is greedy.
      stop_tokens: a row is done when it has drawn one of them.

    Returns:
      tokens int32 [B, n], the stop token included and -1 after it, and the
      cache, whose `done` tells the rows that are finished.

    Raises:
      ValueError: n below 1, a missing key, or no room left in the cache.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if key is None and not sampler.greedy:
        raise ValueError(
            f"key must be a random key at temperature {sampler.temperature}, "
            f"got None; pass jax.random.key(seed), or temperature 0"
        )
    _check_room(model, cache.model, n, "n")
    stop_tokens = tuple(int(token) for token in stop_tokens)
    return _decode(model, n, sampler, stop_tokens, params, cache, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(model, n, sampler, stop_tokens, params, cache, key):
    batch = cache.done.shape[0]

    def going(carry):
        step, cache, _ = carry
        return (step < n) & ~jnp.all(cache.done)

    def draw(carry):
        step, cache, drawn = carry
        keys = None
        if not sampler.greedy:
            keys = sampling.row_keys(key, cache.model.position)
        token = jnp.where(cache.done, NOTHING, sampler(cache.logits, keys))
        # A row that is done reads padding, which leaves its state alone.
        segment = jnp.where(cache.done, NOTHING, cache.model.segment)
        logits, state = model.apply(
            params, token[:, None], cache.model, segment[:, None]
        )
        logits = jnp.where(cache.done[:, None], cache.logits, logits[:, 0])
        done = cache.done
        for stop in stop_tokens:
            done |= token == stop
        drawn = jax.lax.dynamic_update_slice_in_dim(
            drawn, token[:, None], step, axis=1
        )
        return step + 1, DecodeCache(state, logits, done), drawn

    drawn = jnp.full((batch, n), NOTHING, jnp.int32)
    _, cache, drawn = jax.lax.while_loop(going, draw, (0, cache, drawn))
    return drawn, cache


def _check_room(
    model: models.LanguageModel,
    cache: models.ModelCache,
    count: int,
    name: str,
) -> None:
    """Refuses to write past the capacity of softmax attention."""
    capacity = model.capacity(cache)
    if capacity is None:
        return
    used = 0
    written = model.written(cache)
    if written is not None and not isinstance(written, core.Tracer):
        used = int(np.max(np.asarray(written)))
    if used + count > capacity:
        raise ValueError(
            f"{name} asks for {count} more tokens, but the cache holds "
            f"{capacity} and {used} are written; make it with "
            f"model.init_cache(batch, capacity) of at least {used + count}"
        )
