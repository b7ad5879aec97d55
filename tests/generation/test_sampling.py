"""What can be drawn, and how often, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import generation

LOGITS = np.random.default_rng(0).normal(0, 2, (4, 13)).astype(np.float32)


def softmax(x):
    x = np.exp(np.float64(x) - np.max(x, -1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def allowed(row, temperature, top_k, top_p):
    """Token ids that may be drawn, by the book."""
    order = np.argsort(-row, kind="stable")
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        likely = softmax(row[order] / temperature)
        order = order[: int(np.sum(np.cumsum(likely) - likely < top_p))]
    return set(order.tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(None, None), (1, None), (5, None), (99, None), (None, 0.7), (6, 0.8)],
)
def test_masks_are_those_of_numpy(temperature, top_k, top_p):
    sampler = generation.Sampler(temperature, top_k, top_p)
    masked = np.asarray(sampler.mask(jnp.asarray(LOGITS)))
    for row, got in zip(LOGITS, masked, strict=True):
        kept = np.flatnonzero(np.isfinite(got))
        assert set(kept.tolist()) == allowed(row, temperature, top_k, top_p)
        # Up to a constant of the row, which leaves the draw as it is.
        expected = (row[kept] - row.max()) / temperature
        np.testing.assert_allclose(got[kept], expected, 1e-6)


def test_ties_are_ranked_by_token_id():
    masked = generation.Sampler(1.0, top_k=2).mask(jnp.zeros((1, 5)))
    np.testing.assert_array_equal(np.isfinite(masked[0]), [1, 1, 0, 0, 0])


def test_tiny_top_p_keeps_the_likeliest():
    masked = generation.Sampler(1.0, top_p=1e-9).mask(jnp.asarray(LOGITS))
    np.testing.assert_array_equal(
        np.argmax(LOGITS, -1), np.argmax(np.isfinite(masked), -1)
    )
    assert np.isfinite(masked).sum() == 4


@pytest.mark.parametrize("temperature", [1e-30, 1e-300])
def test_the_coldest_draws_are_the_likeliest_token(temperature):
    sampler = generation.Sampler(temperature, top_p=0.9)
    masked = np.asarray(sampler.mask(jnp.asarray(LOGITS)))
    assert not np.isnan(masked).any() and (masked.max(-1) == 0).all()
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(
        sampler(jnp.asarray(LOGITS), keys), LOGITS.argmax(-1)
    )


def test_top_p_of_one_keeps_every_token():
    # Far below what a sum of float32 probabilities tells from 1.
    logits = jnp.asarray([[0.0, -30.0, -60.0, -80.0]])
    for sampler in (
        generation.Sampler(1.0, top_p=1.0),
        generation.Sampler(1.0, top_p=1),
    ):
        np.testing.assert_array_equal(sampler.mask(logits), logits)


def test_greedy_is_argmax():
    drawn = generation.Sampler()(jnp.asarray(LOGITS))
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, LOGITS.argmax(-1))


def test_frequencies_follow_the_masked_distribution():
    sampler = generation.Sampler(0.8, top_k=6, top_p=0.9)
    count = 4000
    logits = jnp.broadcast_to(jnp.asarray(LOGITS[:1]), (count, 13))
    keys = generation.row_keys(
        jax.random.key(0), jnp.zeros((count,), jnp.int32)
    )
    drawn = np.asarray(jax.jit(sampler)(logits, keys))
    expected = softmax(np.asarray(sampler.mask(jnp.asarray(LOGITS[:1]))))[0]
    share = np.bincount(drawn, minlength=13) / count
    assert (share[expected == 0] == 0).all()
    # Five standard deviations.
    np.testing.assert_allclose(
        share, expected, rtol=0, atol=5 * np.sqrt(0.25 / count)
    )


def test_keys_are_folds_of_row_and_position():
    key = jax.random.key(7)
    keys = generation.row_keys(key, jnp.array([3, 3, 9], jnp.int32))
    for row, position in enumerate((3, 3, 9)):
        own = jax.random.fold_in(jax.random.fold_in(key, row), position)
        np.testing.assert_array_equal(
            jax.random.key_data(keys[row]), jax.random.key_data(own)
        )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1.0,), "temperature must be a finite number of at least 0, got -1"),
        ((float("nan"),), "temperature must be a finite number"),
        ((1.0, 0), "top_k must be an int of at least 1 or None, got 0"),
        ((True,), "temperature must be a finite number .* got True"),
        (("hot",), "temperature must be a finite number .* got 'hot'"),
        ((np.inf,), "temperature must be a finite number .* got inf"),
        ((1.0, 2.0), "top_k must be an int of at least 1 or None, got 2.0"),
        ((1.0, True), "top_k must be an int of at least 1 or None, got True"),
        ((1.0, None, 0.0), "top_p must be a number above 0 and at most 1"),
        ((1.0, None, 1.5), "top_p must be a number above 0 and .* got 1.5"),
        ((1.0, None, np.nan), "top_p must be a number above 0 and .* got nan"),
        ((1.0, None, "all"), "top_p must be a number above 0 and .* got 'all'"),
        ((0.0, 5), "top_k and top_p must be None at temperature 0"),
    ],
)
def test_errors(arguments, text):
    with pytest.raises(ValueError, match=text):
        generation.Sampler(*arguments)
