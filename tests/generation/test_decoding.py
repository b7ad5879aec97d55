"""Prefill and decode against the full forward pass, and draws that stay put."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import generation
from seqjax import layers
from seqjax import models
from seqjax.generation import decoding

B, T, N = 3, 9, 6
LENGTHS = (9, 4, 1)
PROMPTS = np.random.default_rng(0).integers(0, 29, (B, T), np.int32)
IDS = np.where(np.arange(T) < np.array(LENGTHS)[:, None], 0, -1)
SAMPLER = generation.Sampler(1.0, top_k=20, top_p=0.95)


@functools.cache
def setup():
    config = models.LanguageModelConfig(
        vocab_size=29,
        width=16,
        pattern=("simple_gla", "attention"),
        repeats=2,
        heads=2,
        mlp_width=24,
        attention=layers.AttentionOptions(key_value_heads=1),
    )
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.4 * noise.standard_normal(leaf.shape, np.float32) + 0.1,
        models.abstract_parameters(config),
    )
    model = models.LanguageModel(config)
    return model, params, jax.jit(model.apply)


def prefilled():
    model, params, _ = setup()
    cache = model.init_cache(B, T + N)
    return generation.prefill(model, params, PROMPTS, cache, IDS)


def forward(texts):
    """Logits of the last N tokens of each text, from one padded call."""
    _, params, apply = setup()
    tokens = np.zeros((B, T + N), np.int32)
    ids = np.full((B, T + N), -1, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        ids[row, : len(text)] = 0
    logits, _ = apply(params, tokens, None, ids)
    return np.stack(
        [
            logits[row, len(text) - N : len(text)]
            for row, text in enumerate(texts)
        ]
    )


def texts(drawn):
    return [
        np.concatenate([PROMPTS[row, :length], drawn[row]])
        for row, length in enumerate(LENGTHS)
    ]


def generate(rows=slice(None), **changes):
    model, params, _ = setup()
    arguments = {
        "max_new_tokens": N,
        "prompt_lengths": np.array(LENGTHS)[rows],
        **changes,
    }
    return np.asarray(
        generation.generate(model, params, PROMPTS[rows], **arguments)
    )


def sampled(key=0, **changes):
    return generate(
        temperature=1.0,
        top_k=20,
        top_p=0.95,
        key=jax.random.key(key),
        **changes,
    )


def test_logits_are_those_of_the_full_forward_pass():
    model, params, _ = setup()
    cache = prefilled()
    logits, drawn = [], []
    for _ in range(N):
        token, cache = generation.decode(model, params, cache, 1)
        drawn.append(token)
        logits.append(cache.logits)
    expected = forward(texts(np.concatenate(drawn, 1)))
    np.testing.assert_allclose(
        np.stack(logits, 1), expected, rtol=2e-5, atol=2e-5
    )


def test_greedy_tokens_are_argmax_of_the_full_forward_pass():
    drawn = generate()
    assert drawn.shape == (B, N) and drawn.dtype == np.int32
    logits = forward(texts(drawn))
    np.testing.assert_array_equal(logits[:, :-1].argmax(-1), drawn[:, 1:])


def test_lengths_in_one_batch_are_one_by_one():
    together = generate()
    for row in (1, 2):
        # The same padded width, so that it is the batch alone that differs.
        alone = generate(slice(row, row + 1))
        np.testing.assert_array_equal(alone[0], together[row])


def test_batch_size_does_not_change_draws():
    np.testing.assert_array_equal(sampled()[:1], sampled(rows=slice(0, 1)))
    assert (sampled(1) != sampled(0)).any()


def test_number_of_tokens_a_call_does_not_change_draws():
    model, params, _ = setup()
    key, cache, pieces = jax.random.key(0), prefilled(), []
    for n in (2, 2, 2):
        tokens, cache = generation.decode(model, params, cache, n, SAMPLER, key)
        pieces.append(tokens)
    np.testing.assert_array_equal(np.concatenate(pieces, 1), sampled())
    np.testing.assert_array_equal(cache.model.position, np.array(LENGTHS) + N)


def test_stop_tokens_finish_rows_and_leave_their_state():
    model, params, _ = setup()
    greedy = generate()
    stop = int(greedy[0, 1])
    tokens, cache = generation.decode(
        model, params, prefilled(), N, stop_tokens=(stop,)
    )
    for row in range(B):
        at = np.flatnonzero(greedy[row] == stop)
        end = at[0] + 1 if len(at) else N
        np.testing.assert_array_equal(tokens[row, :end], greedy[row, :end])
        assert (tokens[row, end:] == -1).all()
        assert bool(cache.done[row]) == bool(len(at))
        assert cache.model.position[row] == LENGTHS[row] + end
    assert cache.done[0] and not cache.done.all()


def test_all_rows_done_emit_nothing_more():
    model, params, _ = setup()
    cache = prefilled()._replace(done=jnp.ones((B,), bool))
    copy = jax.tree.map(jnp.copy, cache)
    tokens, after = generation.decode(model, params, copy, N)
    assert (np.asarray(tokens) == -1).all()
    for a, b in zip(
        jax.tree.leaves(cache), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_repeated_calls_do_not_trace_again():
    model, params, _ = setup()
    generate()
    programs = decoding._prefill, decoding._decode
    before = [program._cache_size() for program in programs]
    assert min(before) > 0
    again = models.LanguageModel(model.config)  # equal, another object
    generation.generate(
        again, params, PROMPTS, max_new_tokens=N, prompt_lengths=LENGTHS
    )
    assert [program._cache_size() for program in programs] == before


def test_state_of_recurrent_layers_does_not_grow():
    model, params, _ = setup()
    cache = prefilled()
    before = [leaf.nbytes for leaf in jax.tree.leaves(cache)]
    _, after = generation.decode(model, params, cache, N)
    assert before == [leaf.nbytes for leaf in jax.tree.leaves(after)]


def test_rows_that_are_done_need_no_room():
    model, params, _ = setup()
    ids = np.where(np.arange(T) < np.array((9, 1, 1))[:, None], 0, -1)
    cache = model.init_cache(B, T + N)
    cache = generation.prefill(model, params, PROMPTS, cache, ids)
    _, cache = generation.decode(model, params, cache, N)
    cache = cache._replace(done=jnp.asarray([True, False, False]))
    # Row 0 is full; the others have N tokens to go and room for more.
    tokens, cache = generation.decode(model, params, cache, N)
    assert (np.asarray(tokens)[0] == -1).all()
    assert (np.asarray(tokens)[1:] >= 0).all()
    np.testing.assert_array_equal(cache.model.position, [15, 13, 13])


def test_the_cache_is_written_in_place():
    """No token, and no call, copies the cache of the layers."""
    model, _, _ = setup()
    config = dataclasses.replace(model.config, repeats=4)
    model = models.LanguageModel(config)
    caches = model.init_cache(B, 4096)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    lowered = decoding._decode.lower(
        model,
        N,
        generation.Sampler(),
        (),
        models.abstract_parameters(config),
        caches,
        jnp.zeros((B, 29)),
        jnp.zeros((B,), bool),
        None,
    )
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    # Keys and values of a layer are transposed for their products.
    assert memory.temp_size_in_bytes < size / 2


def test_a_cache_is_used_once_and_its_copy_again():
    model, params, _ = setup()
    cache = prefilled()
    copy = jax.tree.map(jnp.copy, cache)
    first, _ = generation.decode(model, params, cache, N)
    with pytest.raises(ValueError, match="cache was given to an earlier call"):
        generation.decode(model, params, cache, N)
    with pytest.raises(ValueError, match="cache was given to an earlier call"):
        generation.prefill(model, params, PROMPTS, cache.model, IDS)
    again, _ = generation.decode(model, params, copy, N)
    np.testing.assert_array_equal(first, again)
