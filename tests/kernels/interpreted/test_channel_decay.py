"""Kernels of one gate a key channel, against the recurrence in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from seqjax_kernels.decay import channel
from seqjax_kernels.decay import configs
from tests.kernels.interpreted import additive_oracle as oracle
from tests.kernels.interpreted import test_scalar_decay as scalar_tests

SCALE = 0.3


def case(shape, *, gate="token", **options):
    """As of the scalar rule, with gates [B, T, H, K]."""
    batch, length, _, heads, key, _ = shape
    (q, k, v, _, *rest), bars = scalar_tests.case(shape, gate=None, **options)
    rng = np.random.default_rng(5)
    g = scalar_tests.gates_of(gate, rng, (batch, length, heads * key))
    g = jnp.asarray(g.reshape(batch, length, heads, key))
    return (q, k, v, g, *rest), bars


def run(arrays, bars, chunk_size):
    y, final, *kept = channel.forward(
        *arrays, scale=SCALE, chunk_size=chunk_size
    )
    found = channel.backward(
        *arrays[:5], *kept, *bars, scale=SCALE, chunk_size=chunk_size
    )
    return y, final, *found


def check(arrays, bars, found, bound):
    """Against the recurrence in float64; gates that cut have no gradient."""
    exact = [scalar_tests.wide(x) for x in arrays]
    outputs, states = oracle.forward(*exact, SCALE)
    expected = (
        outputs,
        states[-1],
        *oracle.backward(*exact, SCALE, *map(scalar_tests.wide, bars)),
    )
    names = ("y", "state", "dq", "dk", "dv", "dg", "dinitial")
    errors = {
        name: scalar_tests.distance(a, b)
        for name, a, b in zip(names, found, expected, strict=True)
    }
    assert max(errors.values()) < bound, errors
    assert (np.asarray(found[5])[np.isneginf(exact[3])] == 0).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "gate", "packed", "chunk_size"),
    [
        # B, T, G, H, K, V
        ((2, 37, 1, 2, 20, 24), "float32", "token", False, 16),
        ((1, 40, 1, 1, 40, 24), "float32", "hard", True, 32),
        ((1, 1, 1, 1, 5, 3), "float32", "token", False, None),
        ((1, 70, 1, 1, 32, 32), "bfloat16", "hard", True, None),
        ((2, 20, 2, 4, 16, 16), "float16", "token", True, None),
    ],
)
def test_against_the_recurrence(shape, dtype, gate, packed, chunk_size):
    arrays, bars = case(shape, dtype=dtype, gate=gate, packed=packed)
    found = run(arrays, bars, chunk_size)
    check(arrays, bars, found, scalar_tests.BOUNDS[dtype])


def test_parts_of_the_sequence(monkeypatch):
    """The state is carried in parts; the last begins behind the end."""
    monkeypatch.setattr(configs, "parts", lambda *_: 4)
    arrays, bars = case((1, 70, 1, 2, 20, 40), gate="mild")
    check(arrays, bars, run(arrays, bars, 16), scalar_tests.BOUNDS["float32"])


def test_neighbours_do_not_touch():
    """Change one document: no bit of another moves, gradients included."""
    (q, k, v, g, _, initial), bars = case((1, 32, 1, 1, 16, 16))
    starts = jnp.zeros((1, 32), bool).at[0, 19].set(True)

    def behind(change):
        first = jnp.arange(32)[None, :, None, None] < 19
        q_, k_, v_, g_ = (
            jnp.where(first, x + sign * change, x)
            for x, sign in ((q, 1), (k, 1), (v, 1), (g, -1))
        )
        y, final, *found = run((q_, k_, v_, g_, starts, initial), bars, 32)
        return [y[:, 19:], final, *(x[:, 19:] for x in found[:4])]

    for a, b in zip(behind(0.0), behind(3.0), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
