"""Maps of (m, S) are those of S exp(m), however large the exponents."""

import jax
import numpy as np

from seqjax import recurrence
from seqjax.recurrence import two_floats


def wide(x):
    return np.asarray(x, np.float64)


def draw(rng, size):
    """Decays and peaks up to 1e4, whose true values no float64 holds either."""
    log = -np.exp(3 * rng.normal(size=(3, size)))
    peak = 1e3 * rng.normal(size=(3, size))
    peak[rng.random(peak.shape) < 0.2] = -np.inf
    zeros = rng.random(log.shape) < 0.1
    update = rng.normal(size=(3, size, 2))
    update = np.where(np.isfinite(peak)[..., None], update, 0)
    high = np.float32(log)
    return recurrence.Stabilised(
        recurrence.Decay(high, zeros),
        np.float32(log - high),
        np.float32(peak),
        np.float32(update),
    )


def one_by_one(maps, m, sums):
    """The same in float64."""
    m, sums = np.float64(m), np.float64(sums)
    for i in range(3):
        decay, low, peak, update = jax.tree.map(lambda x, i=i: x[i], maps)
        log = np.float64(decay.log) + np.float64(low)
        old = np.where(decay.zeros, -np.inf, log + m)
        m = np.maximum(old, np.float64(peak))
        with np.errstate(invalid="ignore"):
            keep = np.where(np.isfinite(old), np.exp(old - m), 0)
            write = np.where(np.isfinite(peak), np.exp(peak - m), 0)
        sums = keep[:, None] * sums + write[:, None] * update
    return m, sums


def test_maps_act_and_compose():
    rng = np.random.default_rng(0)
    maps = draw(rng, 500)
    m = np.float32(1e3 * rng.normal(size=500))
    m[:50] = -np.inf
    sums = np.where(np.isfinite(m)[:, None], rng.normal(size=(500, 2)), 0)
    state = m, np.float32(sums)
    a, b, c = (jax.tree.map(lambda x, i=i: x[i], maps) for i in range(3))
    wanted_m, wanted = one_by_one(maps, *state)
    for got_m, got in (
        c.apply(b.apply(a.apply(state))),
        c.compose(b).compose(a).apply(state),
        c.compose(b.compose(a)).apply(state),
        c.identity().compose(c.compose(b)).compose(a).apply(state),
    ):
        np.testing.assert_allclose(got_m, wanted_m, rtol=1e-6)
        # What m has rounded away is in S.
        there = np.isfinite(wanted_m)
        lost = np.where(there, wide(got_m), 0) - np.where(there, wanted_m, 0)
        found = wide(got) * np.exp(lost)[:, None]
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_totals_keep_what_a_sum_loses():
    rng = np.random.default_rng(1)
    x = np.float32(-np.exp(3 * rng.normal(size=(2, 1001, 3))))
    high, low = jax.jit(two_floats.total)(x)
    exact = x.astype(np.float64).sum(1)
    np.testing.assert_allclose(wide(high) + wide(low), exact, rtol=1e-12)
    assert np.abs(wide(high) - exact).max() > 1e-4
