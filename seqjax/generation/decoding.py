"""Prefill of prompts and decoding of what follows, a compiled call each.

The prompt is read in chunk form at once; then tokens are drawn one at a time
inside one compiled loop.  Memory is constant for recurrent layers; softmax
attention fills the cache that `model.init_cache(batch, capacity)` made.

Both calls take over the model's cache and write into its arrays, so that no
token pays for a copy of it.  To go on twice from one cache, pass a copy:
`jax.tree.map(jnp.copy, cache)`.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from seqjax import models
from seqjax.generation import _arguments
from seqjax.generation import sampling
from seqjax.models import checks

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
      cache: of `model.init_cache`, or `.model` of an earlier `DecodeCache`;
        its arrays are used up.
      segment_ids: int32 [B, T], -1 padding; every row needs a real token.
        None: no padding, and each row stays in its document.

    Returns:
      `DecodeCache` with the logits after each row's last real token.

    Raises:
      ValueError: wrong shapes, a row without a real token, a cache that is
        used up, or more tokens than it has room for.
    """
    _arguments.check_alive(cache)
    if cache is None:
        raise ValueError(
            "cache must be a ModelCache, got None; make one with "
            "model.init_cache(batch, capacity)"
        )
    checks.check_call(model.config, tokens, cache, segment_ids)
    if segment_ids is not None and not isinstance(segment_ids, core.Tracer):
        real = np.any(np.asarray(segment_ids) >= 0, axis=1)
        if not real.all():
            raise ValueError(
                f"segment_ids must hold a real token (>= 0) in every row, got "
                f"none in row {int(np.argmin(real))}"
            )
    return _prefill(model, params, tokens, cache, segment_ids)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
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
    stop_tokens: Sequence[int] = (),
) -> tuple[jax.Array, DecodeCache]:
    """Draws n tokens a row; call it again with the cache for the next n.

    Row i draws the token at a position with fold_in(fold_in(key, i), position),
    so the same tokens come whatever n is.  The compiled loop ends early when
    all rows are done.  A token reads the parameters and the keys and values of
    the whole capacity once each and writes its own place of the cache; compile
    time grows with the depth of the model.

    Args:
      model: the language model.
      params: its variables.
      cache: of `prefill` or of the call before; its `model` is used up.
      n: tokens to draw; another n compiles another program.
      sampler: how to draw; greedy by default.
      key: random key; None only where the sampler is greedy.
      stop_tokens: ints in [0, vocab_size); a row is done when it has drawn
        one of them.

    Returns:
      tokens int32 [B, n], the stop token included and -1 after it, and the
      cache, whose `done` tells the rows that are finished.

    Raises:
      ValueError: an argument out of range, a missing key, a cache that is
        used up, or no room left in it for a row that is not done.
    """
    _arguments.check_whole("n", n)
    if not isinstance(sampler, sampling.Sampler):
        raise ValueError(f"sampler must be a Sampler, got {sampler!r}")
    _arguments.check_key(key, sampler.temperature)
    if not isinstance(cache, DecodeCache):
        raise ValueError(
            f"cache must be a DecodeCache, got {type(cache).__name__}; take it "
            f"from prefill or from an earlier decode"
        )
    _arguments.check_alive(cache)
    _check_room(model, cache, n)
    stop_tokens = _stop_tokens(stop_tokens, model.config.vocab_size)
    return _decode(model, n, sampler, stop_tokens, params, *cache, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _decode(
    model, n, sampler, stop_tokens, params, states, logits, done, key
) -> tuple[jax.Array, DecodeCache]:
    batch = done.shape[0]
    cache = DecodeCache(states, logits, done)

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
    model: models.LanguageModel, cache: DecodeCache, count: int
) -> None:
    """Refuses to write past the capacity of softmax attention.

    Rows that are done write nothing.  Under `jit` lengths are unknown, and the
    count is all that can be held against the capacity.
    """
    capacity = checks.capacity(model.config, cache.model)
    written = checks.written(model.config, cache.model)
    if capacity is None or written is None:
        return
    used = 0
    known = written, cache.done
    if not any(isinstance(x, core.Tracer) for x in known):
        live = ~np.asarray(cache.done)
        if not live.any():
            return
        used = int(np.max(np.asarray(written)[live]))
    if used + count > capacity:
        raise ValueError(
            f"n asks for {count} more tokens, but the cache holds "
            f"{capacity} and {used} are written; make it with "
            f"model.init_cache(batch, capacity) of at least {used + count}"
        )


def _stop_tokens(tokens: Sequence[int], size: int) -> tuple[int, ...]:
    """Stop tokens as a tuple of Python ints, for a static argument."""
    listed = np.asarray(tokens)
    if listed.ndim != 1 or (
        listed.size
        and (
            listed.dtype.kind not in "iu"
            or listed.min() < 0
            or listed.max() >= size
        )
    ):
        raise ValueError(
            f"stop_tokens must be a sequence of ints in [0, {size}), got "
            f"{tokens!r}"
        )
    return tuple(listed.tolist())
