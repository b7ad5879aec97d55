"""Prompts in, continuations out."""

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import models
from seqjax.generation import _arguments
from seqjax.generation import decoding
from seqjax.generation import sampling


def generate(
    model: models.LanguageModel,
    params: dict,
    tokens: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
) -> jax.Array:
    """Continues a batch of prompts.

    Row i draws the token at a position with fold_in(fold_in(key, i), position):
    neither the other rows nor the length of the padding change it.

    Args:
      model: the language model.
      params: its variables.
      tokens: int32 [B, T], prompts, padded on the right.
      max_new_tokens: tokens to make a row.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among that many likeliest tokens; None for all.
      top_p: draw among the likeliest tokens that make up that probability;
        None for all.
      key: random key; may be None at temperature 0.
      prompt_lengths: int [B], real tokens of each prompt, at least 1; None
        where all T are.

    Returns:
      int32 [B, max_new_tokens], the new tokens.

    Raises:
      ValueError: an argument out of range, or a token outside the vocabulary.
    """
    sampler = sampling.Sampler(temperature, top_k, top_p)
    _arguments.check_whole("max_new_tokens", max_new_tokens)
    _arguments.check_key(key, temperature)
    prompts = np.asarray(tokens)
    if prompts.ndim != 2 or prompts.size == 0 or prompts.dtype.kind not in "iu":
        raise ValueError(
            f"tokens must be int32 [B, T] with B and T at least 1, got "
            f"{prompts.dtype} {list(prompts.shape)}"
        )
    batch, length = prompts.shape
    segment_ids = _segment_ids(prompt_lengths, batch, length)
    _check_vocabulary(prompts, segment_ids, model.config.vocab_size)
    # Exactly what will be written, so that the cache cannot overflow.
    cache = model.init_cache(batch, length + max_new_tokens)
    state = decoding.prefill(
        model,
        params,
        jnp.asarray(prompts, jnp.int32),
        cache,
        jnp.asarray(segment_ids),
    )
    drawn, _ = decoding.decode(
        model, params, state, max_new_tokens, sampler, key
    )
    return drawn


def _segment_ids(
    prompt_lengths: jax.Array | None, batch: int, length: int
) -> np.ndarray:
    """0 for the real tokens of right-padded prompts, -1 for padding."""
    if prompt_lengths is None:
        return np.zeros((batch, length), np.int32)
    lengths = np.asarray(prompt_lengths)
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"prompt_lengths must be int [{batch}], one for each row of "
            f"tokens, got {lengths.dtype} {list(lengths.shape)}"
        )
    if lengths.min() < 1 or lengths.max() > length:
        raise ValueError(
            f"prompt_lengths must be between 1 and {length} (the width of "
            f"tokens), got {lengths.tolist()}"
        )
    real = np.arange(length)[None] < lengths[:, None]
    return np.where(real, 0, -1).astype(np.int32)


def _check_vocabulary(
    prompts: np.ndarray, segment_ids: np.ndarray, size: int
) -> None:
    outside = (segment_ids >= 0) & ((prompts < 0) | (prompts >= size))
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"tokens must be in [0, {size}), got {prompts[row, column]} at "
            f"row {row}, column {column}"
        )
