"""Every way of cutting the work of a model gives the same logits (float64).

All five mixers are in the model.  Calls of different lengths are padded to one
shape, so that three programs serve all tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models

B, T, CAPACITY = 3, 17, 24
# Rows: three documents with padding inside; one document; padding at the end.
IDS = np.array(
    [
        [0, 0, 0, -1, 0, 1, 1, -1, 1, 2, 2, 2, 2, 2, 2, 2, 2],
        [4] * 17,
        [5, 5, 5, 5, 5, 5, 5, 7, 7, 7, 7, -1, -1, -1, -1, -1, -1],
    ],
    np.int32,
)
REAL = IDS >= 0


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, 29, (B, T), np.int32)


@functools.cache
def setup():
    config = models.LanguageModelConfig(
        vocab_size=29,
        width=16,
        pattern=("simple_gla", "retnet", "attention", "lightning", "mamba2"),
        repeats=2,
        heads=2,
        mlp_width=24,
        attention=layers.AttentionOptions(
            key_value_heads=1, output_gate="headwise"
        ),
        mamba2=layers.Mamba2Options(head_dim=8, state_size=4),
        dtype="float64",
    )
    config.validate()
    model = models.LanguageModel(config)
    # Noise everywhere, so that scales and biases matter; no init to compile.
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.3 * noise.standard_normal(leaf.shape, np.float32) + 0.2,
        models.abstract_parameters(config),
    )
    return model, params, jax.jit(model.apply)


def run(inputs, ids, cache=None):
    """One call, padded on the right to T."""
    model, params, apply = setup()
    if cache is None:
        cache = model.init_cache(B, CAPACITY)
    length = inputs.shape[1]
    pad = ((0, 0), (0, T - length))
    logits, cache = apply(
        params,
        np.pad(inputs, pad, constant_values=-7),
        cache,
        np.pad(ids, pad, constant_values=-1),
    )
    assert logits.dtype == jnp.float64
    return np.asarray(logits)[:, :length], cache


@functools.cache
def packed():
    return run(tokens(), IDS)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_cache_or_none_and_ids_or_none():
    _, params, apply = setup()
    whole, cache = apply(params, tokens())
    zeros = np.zeros((B, T), np.int32)
    with_cache, cached = run(tokens(), zeros)
    close(whole, with_cache)
    for name in ("segment", "position"):
        np.testing.assert_array_equal(
            getattr(cache, name), getattr(cached, name)
        )
    np.testing.assert_array_equal(cache.position, [T] * B)


@pytest.mark.parametrize("at", [1, 4, 8, 9, 16])
def test_split_anywhere(at):
    first, cache = run(tokens()[:, :at], IDS[:, :at])
    second, cache = run(tokens()[:, at:], IDS[:, at:], cache)
    logits = np.concatenate([first, second], 1)
    close(logits[REAL], packed()[0][REAL])
    np.testing.assert_array_equal(cache.segment, [2, 4, 7])
    np.testing.assert_array_equal(cache.position, [8, 17, 4])
    # All but attention, which forgets other documents at a new call.
    for i, pair in enumerate(
        zip(cache.states, packed()[1].states, strict=True)
    ):
        if i % 5 != 2:
            jax.tree.map(close, *pair)


def test_one_token_at_a_time():
    model, params, apply = setup()
    prefix, cache = run(tokens()[:, :5], np.zeros((B, 5), np.int32))
    steps = [prefix]
    for t in range(5, T):
        # Without ids a row goes on with its document.
        logits, cache = apply(params, tokens()[:, t : t + 1], cache)
        steps.append(logits)
    whole, _ = run(tokens(), np.zeros((B, T), np.int32))
    close(np.concatenate(steps, 1), whole)


def test_packed_is_separate():
    documents = [(0, 0), (0, 1), (0, 2), (1, 4), (2, 5), (2, 7)]
    for start in (0, 3):
        alone = np.zeros((B, T), np.int32)
        ids = np.full((B, T), -1, np.int32)
        for row, (source, document) in enumerate(documents[start : start + 3]):
            text = tokens()[source][IDS[source] == document]
            alone[row, : len(text)] = text
            ids[row, : len(text)] = 3
        logits, _ = run(alone, ids)
        for row, (source, document) in enumerate(documents[start : start + 3]):
            expected = packed()[0][source][IDS[source] == document]
            close(logits[row, : len(expected)], expected)


def test_neighbours_and_padding_do_not_matter_at_all():
    """Bit for bit: other tokens in document 1 and at padding."""
    other = tokens().copy()
    other[IDS == -1] = 1000
    other[IDS == 1] = (other[IDS == 1] + 1) % 29
    logits, cache = run(other, IDS)
    kept = REAL & (IDS != 1)
    np.testing.assert_array_equal(logits[kept], packed()[0][kept])
    assert np.abs(logits - packed()[0])[IDS == 1].max() > 1e-3
    np.testing.assert_array_equal(cache.position, packed()[1].position)


def test_a_token_outside_the_vocabulary_shows():
    """As NaN, in its own row alone: no index wraps around or is clipped."""
    other = tokens().copy()
    other[0, 6], other[1, 9] = -1, 29
    logits, _ = run(other, IDS)
    bad = np.zeros((B, T), bool)
    bad[0, 6], bad[1, 9] = True, True
    assert np.isnan(logits[bad]).all()
    close(logits[2][REAL[2]], packed()[0][2][REAL[2]])


def test_a_new_document_starts_afresh_in_a_used_cache():
    _, cache = run(tokens(1), IDS)
    ids = np.array([[0] * 5, [4] * 5, [9] * 5], np.int32)
    logits, cache = run(tokens()[:, :5], ids, cache)
    fresh, _ = run(tokens()[:, :5], ids)
    # Row 1 goes on with document 4, the others start one; 0 came before 2.
    close(logits[[0, 2]], fresh[[0, 2]])
    assert np.abs(logits[1] - fresh[1]).max() > 1e-3
    np.testing.assert_array_equal(cache.segment, [0, 4, 9])
    np.testing.assert_array_equal(cache.position, [5, 22, 5])


def test_a_call_of_padding_changes_nothing():
    _, cache = run(tokens()[:, :9], IDS[:, :9])
    nothing = np.full((B, T), -1, np.int32)
    _, after = run(tokens(), nothing, cache)
    for a, b in zip(
        jax.tree.leaves(cache), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_causality_is_exact():
    changed = tokens().copy()
    changed[:, 11] = (changed[:, 11] + 1) % 29
    logits, _ = run(changed, IDS)
    np.testing.assert_array_equal(logits[:, :11], packed()[0][:, :11])
