"""Every name of the pattern: all ways of cutting the work agree (float64).

Two programs a mixer: values and gradients of a padded call with a cache, which
serves packed, separate and partial texts, and a decode step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models

B, T, CAPACITY, VOCAB = 2, 13, 16, 11
# Documents of 4, 4 and 3 tokens with padding inside; one of 11, padding after.
IDS = np.array(
    [[0, 0, -1, 0, 0, 1, 1, 1, -1, 1, 2, 2, 2], [4] * 11 + [-1] * 2], np.int32
)
REAL = IDS >= 0
NAMES = models.LanguageModelConfig.pattern_names()


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def tokens():
    return np.random.default_rng(0).integers(0, VOCAB, (B, T), np.int32)


@functools.cache
def setup(name):
    config = models.LanguageModelConfig(
        vocab_size=VOCAB,
        width=16,
        pattern=(name,),
        repeats=2,
        heads=2,
        mlp_width=24,
        dtype="float64",
        mamba2=layers.Mamba2Options(head_dim=8, state_size=4, groups=2),
        mamba2_attention=layers.Mamba2AttentionOptions(
            mamba2=layers.Mamba2Options(
                head_dim=8, state_size=4, scales=(0.9, 1.1, 0.8, 1.2, 0.7)
            ),
            attention=layers.AttentionOptions(scale=0.3),
            mamba2_scales=(0.9, 1.2),
            attention_scales=(1.1, 0.8),
        ),
        based=layers.BasedOptions(feature_dim=3),
    )
    config.validate()
    model = models.LanguageModel(config)
    # Noise everywhere, so that scales and biases matter; no init to compile.
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.3 * noise.standard_normal(leaf.shape, np.float32) + 0.1,
        models.abstract_parameters(config),
    )
    weights = jax.random.normal(jax.random.key(2), (B, T, VOCAB))

    @jax.jit
    def call(params, tokens, cache, ids):
        def loss(params):
            logits, after = model.apply(params, tokens, cache, ids)
            real = (ids >= 0)[..., None]
            total = jnp.sum(jnp.where(real, logits * weights, 0))
            return total, (logits, after)

        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return *found, grads

    return model, params, call, jax.jit(model.apply)


def run(name, inputs, ids):
    """Logits, cache and gradients of a text padded to T, from an empty cache.

    Padding holds no token of the vocabulary.
    """
    model, params, call, _ = setup(name)
    pad = ((0, 0), (0, T - inputs.shape[1]))
    return call(
        params,
        np.pad(inputs, pad, constant_values=-7),
        model.init_cache(B, CAPACITY),
        np.pad(ids, pad, constant_values=-1),
    )


@functools.cache
def packed(name):
    return run(name, np.where(REAL, tokens(), -7), IDS)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_dtypes_and_every_parameter_learns(name):
    logits, cache, grads = packed(name)
    assert logits.shape == (B, T, VOCAB) and logits.dtype == jnp.float64
    model = setup(name)[0]
    empty = jax.eval_shape(lambda: model.init_cache(B, CAPACITY))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == jax.tree.map(
        lambda x: (x.shape, x.dtype), empty
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        size = np.abs(leaf).max()
        assert np.isfinite(size) and size > 1e-9, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", NAMES)
def test_packed_is_separate(name):
    for order in ((0, 4), (1, 2)):
        alone = np.zeros((B, T), np.int32)
        ids = np.full((B, T), -1, np.int32)
        for row, document in enumerate(order):
            text = tokens()[IDS == document]
            alone[row, : len(text)] = text
            ids[row, : len(text)] = 3
        logits = run(name, alone, ids)[0]
        for row, document in enumerate(order):
            expected = packed(name)[0][IDS == document]
            close(logits[row, : len(expected)], expected)


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_steps_are_the_whole(name):
    _, params, _, step = setup(name)
    text, whole = tokens()[:, :7], np.zeros((B, 7), np.int32)
    prefix, cache, _ = run(name, text[:, :3], whole[:, :3])
    found = [prefix[:, :3]]
    for t in range(3, 7):
        logits, cache = step(params, text[:, t : t + 1], cache)
        found.append(logits)
    expected, after, _ = run(name, text, whole)
    close(np.concatenate(found, 1), expected[:, :7])
    if name != "attention":  # which has other padding behind
        for a, b in zip(
            jax.tree.leaves(cache), jax.tree.leaves(after), strict=True
        ):
            close(np.nan_to_num(a), np.nan_to_num(b))
