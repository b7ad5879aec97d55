"""Kernels of one gate a token and head, against the recurrence in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from seqjax_kernels.decay import configs
from seqjax_kernels.decay import scalar
from tests.kernels.interpreted import additive_oracle as oracle

SCALE = 0.3
# Relative, of norms: products of float32 operands, of bfloat16 operands.
BOUNDS = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 1e-3}


def gates_of(kind, rng, shape):
    """Gates of a kind; the hard ones stand beside mild ones."""
    if kind is None:
        return None
    if kind == "head":
        return (-0.1 * rng.exponential(size=shape[2])).astype("float32")
    g = -0.1 * rng.exponential(size=shape)
    if kind == "mild":
        # Half of the heads forget nothing but a little.
        g = 0.1 * g
        g[:, 12, 1::2] = -np.inf
    if kind == "hard":
        which = rng.random(shape)
        g = np.where(which < 0.2, 0, g)
        g = np.where(which < 0.1, -np.inf, g)
        g = np.where(which < 0.05, -1e4, g)
        g[:, 3:5] = np.finfo("float32").min  # two overflow a sum
    return g.astype("float32")


def case(shape, *, dtype="float32", gate="token", packed=False, seed=0):
    """Arguments of forward and the two cotangents, in jax."""
    batch, length, groups, heads, key, value = shape
    rng = np.random.default_rng(seed)
    make = lambda *size: jnp.asarray(rng.normal(size=size), dtype)  # noqa: E731
    q = make(batch, length, groups, key)
    k = make(batch, length, groups, key)
    v = make(batch, length, heads, value)
    g = gates_of(gate, rng, (batch, length, heads))
    starts = None
    if packed:
        starts = rng.random((batch, length)) < 0.07
        starts[:, 31:33] = True  # the last token of a chunk, and the next
        starts[1:, 0] = True  # no initial state
    initial = rng.normal(size=(batch, heads, key, value)).astype("float32")
    y_bar = make(*v.shape)
    state_bar = rng.normal(size=initial.shape).astype("float32")
    as_jax = lambda x: None if x is None else jnp.asarray(x)  # noqa: E731
    return (q, k, v, as_jax(g), as_jax(starts), as_jax(initial)), (
        y_bar,
        as_jax(state_bar),
    )


def wide(x):
    if x is None or x.dtype == bool:
        return None if x is None else np.asarray(x)
    return np.asarray(x.astype(jnp.float32)).astype("float64")


def distance(found, expected):
    found = wide(found)
    assert np.isfinite(found).all()
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check(arrays, bars, bound, chunk_size):
    y, final, states = scalar.forward(
        *arrays, scale=SCALE, chunk_size=chunk_size
    )
    found = scalar.backward(
        *arrays[:5], states, *bars, scale=SCALE, chunk_size=chunk_size
    )
    exact = [wide(x) for x in arrays]
    outputs, last = oracle.forward(*exact, SCALE)
    expected = oracle.backward(*exact, SCALE, *(wide(x) for x in bars))
    errors = {
        "y": distance(y, outputs),
        "state": distance(final, last[-1]),
    }
    for name, a, b in zip("qkvgs", found, expected, strict=True):
        if name == "g":
            if a is None:
                continue
            b = b.sum(axis=-1)
            dead = np.isneginf(np.broadcast_to(exact[3], b.shape))
            assert (np.asarray(a)[dead] == 0).all()
        errors[f"d{name}"] = distance(a, b)
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize(
    ("shape", "gate", "packed", "chunk_size"),
    [
        # B, T, G, H, K, V
        ((2, 37, 1, 2, 20, 24), "token", False, 16),
        ((1, 50, 1, 3, 16, 72), "hard", True, 16),
        ((1, 33, 1, 1, 72, 17), "head", True, 32),
        ((2, 20, 2, 2, 16, 16), None, True, 16),
        ((1, 1, 1, 1, 5, 3), "token", False, 16),
    ],
)
def test_float32(shape, gate, packed, chunk_size):
    arrays, bars = case(shape, gate=gate, packed=packed)
    check(arrays, bars, BOUNDS["float32"], chunk_size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half(dtype):
    arrays, bars = case((1, 70, 2, 4, 32, 16), dtype=dtype, packed=True)
    check(arrays, bars, BOUNDS[dtype], None)


def test_mixed():
    """bfloat16 beside float32 is multiplied as bfloat16, kept as it is."""
    arrays, bars = case((1, 30, 1, 2, 16, 16), dtype="bfloat16")
    q, k, v, *rest = arrays
    v = v.astype(jnp.float32)
    bars = (bars[0].astype(jnp.float32), bars[1])
    y, _, _ = scalar.forward(q, k, v, *rest, scale=SCALE)
    assert y.dtype == jnp.float32
    check((q, k, v, *rest), bars, BOUNDS["bfloat16"], None)


def test_parts_of_the_sequence_and_shares_of_heads(monkeypatch):
    """Passes over parts of the sequence, and heads shared by programs."""
    # Five chunks: the third part ends beyond the last, the fourth begins there.
    monkeypatch.setattr(configs, "parts", lambda *_: 4)
    monkeypatch.setattr(configs, "shares", lambda *_: 2)
    arrays, bars = case((1, 70, 1, 4, 16, 20), dtype="bfloat16", gate="mild")
    check(arrays, bars, BOUNDS["bfloat16"], 16)


def test_mild_gates_beside_a_hard_one():
    """Differences of plain float32 sums would be off by 1e-3 here."""
    arrays, bars = case((1, 32, 1, 1, 16, 16))
    q, k, v, g, *rest = arrays
    g = g.at[:, 16].set(-1e4)
    check((q, k, v, g, *rest), bars, BOUNDS["float32"], 32)


def test_neighbours_do_not_touch():
    """Change one document: no bit of another moves, gradients included."""
    arrays, bars = case((1, 32, 1, 1, 16, 16))
    q, k, v, g, _, initial = arrays
    starts = jnp.zeros((1, 32), bool).at[0, 19].set(True)

    def run(change):
        first = jnp.arange(32)[None, :, None, None] < 19
        moved = [jnp.where(first, x + change, x) for x in (q, k, v)]
        # Sums must forget what lies in front of a start, in all digits.
        gates = jnp.where(first[..., 0], g - 1e12 * change, g)
        y, final, states = scalar.forward(
            *moved, gates, starts, initial, scale=SCALE, chunk_size=32
        )
        found = scalar.backward(
            *moved, gates, starts, states, *bars, scale=SCALE, chunk_size=32
        )
        return [y[:, 19:], final, *(x[:, 19:] for x in found[:4])]

    for a, b in zip(run(0.0), run(3.0), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
