"""Running maxima: their maps compose, and their prefixes are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import recurrence


def maps(rng, *shape):
    """Integers, whose sums are exact, up to ±1e3, and -inf among them."""
    d = -np.floor(np.exp(rng.normal(size=shape) * 2))
    i = np.round(rng.normal(size=shape) * np.exp(rng.normal(size=shape) * 2))
    d[rng.random(shape) < 0.05] = -np.inf
    i[rng.random(shape) < 0.05] = -np.inf
    return recurrence.MaxPlus(jnp.float32(d), jnp.float32(i))


def test_maps_compose_associatively_and_act():
    rng = np.random.default_rng(0)
    a, b, c = (maps(rng, 200) for _ in range(3))
    left, right = c.compose(b).compose(a), c.compose(b.compose(a))
    m = jnp.float32(rng.integers(-100, 100, size=200))
    one_by_one = c.apply(b.apply(a.apply(m)))
    for x, y in zip(left, right, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(left.apply(m), one_by_one)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_prefixes_equal_the_loop(length):
    rng = np.random.default_rng(length)
    given = maps(rng, 2, length, 3)
    initial = np.float32([[-np.inf, 0.0, 50.0]] * 2)
    m, expected = initial.astype(np.float64), []
    for t in range(length):
        m = np.maximum(m + np.float64(given.d[:, t]), given.i[:, t])
        expected.append(m)
    got = jax.jit(recurrence.prefix_maxima)(given).apply(initial[:, None])
    np.testing.assert_array_equal(got, np.stack(expected, 1))


def test_the_cotangent_goes_where_the_maximum_came_from():
    d = jnp.full((1, 4, 1), -1.0)
    i = jnp.float32([0.0, 5.0, 1.0, 4.5])[None, :, None]

    def last(d, i):
        return recurrence.prefix_maxima(recurrence.MaxPlus(d, i)).i[0, 2, 0]

    d_bar, i_bar = jax.grad(last, (0, 1))(d, i)
    assert d_bar[0, :, 0].tolist() == [0, 0, 1, 0]
    assert i_bar[0, :, 0].tolist() == [0, 1, 0, 0]
