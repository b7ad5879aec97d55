"""Scores of one chunk with channel gates, and their gradients, against sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.ops import _channel_pairs
from seqjax.ops import _channel_score_cotangents
from seqjax.ops import _channel_scores
from tests.conformance import spec

B, M, K = 7, 2, 5
EXACT = jax.lax.Precision.HIGHEST


def gates(rng, size):
    """Rows: none, weak, strong, total, one overwhelming among weak, mixed."""
    log = np.zeros((B, size, K), np.float32)
    for row, value in enumerate((-1e-6, -20.0, -1e4, -np.inf), start=1):
        log[row] = value
    shape = log[0].shape
    log[5] = np.where(rng.random(shape) < 0.1, -1e4, -0.05)
    log[6] = np.where(rng.random(shape) < 0.3, -np.inf, -rng.random(shape))
    return log


def expected(x, y, log, bars):
    """Every product written out: D[t] of tokens j < m <= i, i >= j."""
    size = log.shape[1]
    i, m, j = np.ogrid[:size, :size, :size]
    inside = (i >= m) & (m > j)  # [i, m, j]
    log = np.where(np.isinf(log), -1e5, log)  # exp is 0 just the same
    reach = np.exp(np.einsum("imj,bmk->bijk", inside, log))
    reach *= np.tri(size)[None, :, :, None]
    upto = np.tri(size)
    head = np.exp(np.einsum("im,bmk->bik", upto, log))
    tail = reach[:, -1]
    values = (
        np.einsum("bnik,bjk,bijk->bnij", x, y, reach),
        x * head[:, None],
        y * tail,
    )
    scores, x_head, y_tail = bars
    terms = np.einsum("bnij,bnik,bjk,bijk->bijk", scores, x, y, reach)
    log_bar = np.einsum("imj,bijk->bmk", inside, terms)
    log_bar += np.einsum("im,bnik->bmk", upto, x_head * values[1])
    log_bar += np.einsum("mj,bjk->bmk", np.tri(size, k=-1), y_tail * values[2])
    grads = (
        np.einsum("bnij,bjk,bijk->bnik", scores, y, reach)
        + x_head * head[:, None],
        np.einsum("bnij,bnik,bijk->bjk", scores, x, reach) + y_tail * tail,
        log_bar,
    )
    return values + grads


@pytest.mark.parametrize("size", [1, 12])
def test_scores_and_gradients_equal_the_products_written_out(size):
    rng = np.random.default_rng(size)
    shapes = ((B, M, size, K), (B, size, K))
    x, y = (rng.normal(size=s).astype(np.float32) for s in shapes)
    log = gates(rng, size)
    bars = [
        rng.normal(size=s).astype(np.float32)
        for s in ((B, M, size, size), *shapes)
    ]

    @jax.jit
    def run(x, y, log, bars):
        out, pull = jax.vjp(
            lambda *z: _channel_pairs.channel_inside(*z, precision=EXACT),
            x,
            y,
            log,
        )
        return out + pull(tuple(bars))

    got = run(x, y, log, bars)
    wide = [z.astype(np.float64) for z in (x, y, log)]
    names = ("scores", "x_head", "y_tail", "x", "y", "log")
    for name, a, b in zip(names, got, expected(*wide, bars), strict=True):
        for row in range(B):  # each kind of gate on its own
            error = spec.error(a[row], b[row])
            assert error <= 1e-6, f"{name}, row {row}: {error:.1e}"


def test_one_reading_vector_needs_no_axis():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, B, 16, K)).astype(np.float32)
    log = gates(rng, 16)
    inside = jax.jit(
        functools.partial(_channel_pairs.channel_inside, precision=EXACT)
    )
    one = inside(x, y, log)
    stacked = inside(x[:, None], y, log)
    np.testing.assert_allclose(one[0], stacked[0][:, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(one[1], stacked[1][:, 0])
    np.testing.assert_array_equal(one[2], stacked[2])


def test_scores_of_two_reads_and_two_writes_equal_the_products():
    size = 16
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, B, 2, size, K)).astype(np.float32)
    log = gates(rng, size)
    bars = [
        rng.normal(size=s).astype(np.float32)
        for s in ((B, 2, size, 2, size), x.shape, y.shape)
    ]

    @jax.jit
    def run(x, y, log, bars):
        p = _channel_scores.pairs(x, y, log)
        made = _channel_scores.scores(
            p, x, y, [[(0, 0), (1, 0)], [(0, 1), (1, 1)]], precision=EXACT
        )
        scores_bar, head_bar, tail_bar = bars
        return made, _channel_score_cotangents.scores_cotangents(
            p,
            x,
            y,
            log,
            (scores_bar, head_bar, tail_bar, jnp.zeros((B, K))),
            own_reads=2,
            precision=EXACT,
        )

    made, grads = run(x, y, log, bars)
    x, y, log = (z.astype(np.float64) for z in (x, y, log))
    want = np.zeros(x.shape), np.zeros(y.shape), np.zeros(log.shape)
    for n in range(2):
        scores_bar = np.swapaxes(bars[0], 2, 3)[:, :, n]
        parts = (scores_bar, bars[1] if n == 0 else 0 * bars[1], bars[2][:, n])
        values = expected(x, y[:, n], log, parts)
        scores = values[0].reshape(B, 2 * size, size)
        for row in range(B):
            assert spec.error(made[n][row], scores[row]) <= 1e-6, (n, row)
        want[0][:] += values[3]
        want[1][:, n] = values[4]
        want[2][:] += values[5]
    for name, a, b in zip(("x", "y", "log"), grads, want, strict=True):
        for row in range(B):
            error = spec.error(a[row], b[row])
            assert error <= 1e-6, f"{name}, row {row}: {error:.1e}"
