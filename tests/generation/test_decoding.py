"""Prefill and decode against the full forward pass, and draws that stay put."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import generation
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
        pattern=("gla", "attention"),
        repeats=2,
        heads=2,
        key_value_heads=1,
        mlp_width=24,
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
    tokens, after = generation.decode(model, params, cache, N)
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
    _, after = generation.decode(model, params, cache, N)
    before, after = (
        [leaf.nbytes for leaf in jax.tree.leaves(c)] for c in (cache, after)
    )
    assert before == after


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": 1.0}, "key must be a random key at temperature 1.0"),
        ({"top_k": 3}, "None at temperature 0"),
        ({"prompt_lengths": [1, 2]}, r"prompt_lengths must be int \[3\]"),
        (
            {"prompt_lengths": np.array([0, 2, 3])},
            r"between 1 and 9 .* got \[0, 2, 3\]",
        ),
    ],
)
def test_generate_errors(changes, text):
    with pytest.raises(ValueError, match=text):
        generate(**changes)


def test_token_outside_the_vocabulary():
    model, params, _ = setup()
    with pytest.raises(ValueError, match=r"\[0, 29\), got 29 at row 1, column"):
        generation.generate(
            model, params, np.array([[1], [29]]), max_new_tokens=1
        )


def test_writing_past_the_cache_is_refused():
    model, params, _ = setup()
    with pytest.raises(ValueError, match="row 0 has 9 more .* holds 8 and 0"):
        generation.prefill(model, params, PROMPTS, model.init_cache(B, 8))
    with pytest.raises(ValueError, match="n asks for 7 .* holds 15 and 9 are"):
        generation.decode(model, params, prefilled(), 7)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        generation.decode(model, params, prefilled(), 0)
    with pytest.raises(ValueError, match="key must be a random key"):
        generation.decode(model, params, prefilled(), 1, SAMPLER)


def test_prefill_needs_a_real_token_in_every_row():
    model, params, _ = setup()
    ids = np.where(np.arange(B)[:, None] == 1, -1, IDS)
    with pytest.raises(ValueError, match="every row, got none in row 1"):
        generation.prefill(model, params, PROMPTS, model.init_cache(B, T), ids)
