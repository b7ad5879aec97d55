"""Short convolution, gated norm and chunk sums against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import recurrence
from seqjax.parallel import halo
from seqjax_kernels.pointwise import convolution
from seqjax_kernels.pointwise import cumsum
from seqjax_kernels.pointwise import norm
from tests.oracles import convolution as oracle
from tests.oracles import tape

# Largest error of an array over its largest value: rounding of the result.
BOUND = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.2e-2}


def random(seed, shape, dtype="float32"):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), dtype)


def wide(array):
    return np.asarray(array, np.float64)


def assert_close(found, expected, dtype, what):
    for name, a, e in zip(what, found, expected, strict=True):
        assert a.shape == e.shape, name
        error = np.abs(wide(a) - e).max(initial=0)
        assert error <= BOUND[dtype] * max(np.abs(e).max(initial=0), 1e-3), (
            f"{name}: {error}"
        )


def documents(seed, batch, length, padded):
    """Packed documents; with padding anywhere, and one row of nothing else."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(0, 4, size=(batch, length)), axis=1)
    ids[0, -1] = 4  # so the final state holds less than its window
    if padded:
        ids[rng.random((batch, length)) < 0.3] = -1
        ids[-1] = -1
    return ids.astype(np.int32)


CONVOLUTIONS = {
    # B, T, D, W, dtype, activation, documents, optional inputs
    "plain": (2, 37, 20, 4, "float32", None, None, False),
    "silu": (1, 70, 24, 4, "float32", "silu", None, True),
    "shorter than its window": (2, 2, 16, 4, "float32", "silu", None, True),
    "one token": (2, 1, 16, 4, "float16", "silu", None, True),
    "bfloat16": (1, 40, 72, 4, "bfloat16", "silu", None, True),
    "one tap": (1, 20, 16, 1, "float32", "silu", None, True),
    "packed": (2, 40, 20, 3, "float32", "silu", "packed", True),
    "padded": (3, 30, 20, 4, "float32", "silu", "padded", True),
    "padded, no state": (2, 30, 20, 4, "bfloat16", None, "padded", False),
    "padded, one tap": (2, 20, 16, 1, "float32", "silu", "padded", True),
    # Programs that make two tiles; the last one's second is not whole.
    "long": (1, 300, 64, 2, "bfloat16", None, None, False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    B, T, D, W, dtype, activation, packing, optional = CONVOLUTIONS[name]
    inputs = {"x": random(0, (B, T, D), dtype), "weight": random(1, (W, D))}
    if optional:
        inputs["bias"] = random(2, (D,))
        inputs["initial"] = random(3, (B, W - 1, D))
    ids = plan = None
    if packing is not None:
        ids = documents(4, B, T, packing == "padded")
        plan = convolution.make_plan(jnp.asarray(ids), W)
    bars = random(5, (B, T, D)), random(6, (B, W - 1, D))

    @jax.jit
    def run(inputs):
        def function(given):
            return convolution.short_convolution(
                given["x"],
                given["weight"],
                given.get("bias"),
                given.get("initial"),
                plan,
                activation=activation,
            )

        made, back = jax.vjp(function, inputs)
        return made, back((bars[0].astype(dtype), bars[1]))[0]

    made, gradients = run(inputs)

    exact = {n: tape.constant(wide(a)) for n, a in inputs.items()}
    state = exact.pop("initial", tape.constant(np.zeros(bars[1].shape)))
    if ids is None:
        ids = np.zeros((B, T), np.int32)
    y, (last,) = oracle.short_convolution(exact, (state,), ids, activation)
    rounded = bars[0].astype(dtype)
    varied = exact | ({"initial": state} if optional else {})
    expected = tape.gradients(
        [y, last], [wide(rounded), wide(bars[1])], list(varied.values())
    )
    assert_close(made, (y.value, last.value), dtype, ("y", "state"))
    assert_close([gradients[n] for n in varied], expected, dtype, tuple(varied))
    assert made[0].dtype == dtype and gradients["x"].dtype == dtype


def test_padding_may_hold_anything():
    ids = jnp.asarray([[0, -1, 0, 0, -1]], jnp.int32)
    x = random(0, (1, 5, 16)).at[:, jnp.asarray([1, 4])].set(jnp.nan)
    weight = random(1, (3, 16))
    plan = convolution.make_plan(ids, 3)

    def run(x):
        y, state = convolution.short_convolution(x, weight, None, None, plan)
        return jnp.sum(y) + jnp.sum(state), y

    gradient, y = jax.grad(run, has_aux=True)(x)
    assert np.isfinite(gradient).all() and np.isfinite(y).all()
    assert not y[0, 1].any() and not gradient[0, 4].any()


def test_ids_mean_what_they_mean_elsewhere():
    assert convolution.PADDING == recurrence.PADDING
    assert convolution.INITIAL == halo.INITIAL


NORMS = {
    # shape, dtype, activation, gate first, groups
    "after": ((2, 5, 3, 24), "float32", "silu", False, 1),
    "before, in groups": ((2, 70, 48), "float32", "sigmoid", True, 2),
    "bfloat16": ((9, 100), "bfloat16", "silu", True, 1),
    "float16": ((2, 3, 16), "float16", "sigmoid", False, 1),
    # Programs that make two rows, one after another; the last makes one.
    "long rows": ((1, 35, 1030), "float32", "silu", False, 1),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name):
    shape, dtype, activation, first, groups = NORMS[name]
    x, gate, bar = (random(i, shape, dtype) for i in range(3))
    weight = random(3, shape[-1:])
    function = functools.partial(
        norm.gated_rms_norm,
        activation=activation,
        gate_first=first,
        groups=groups,
    )
    y, back = jax.vjp(jax.jit(function), x, gate, weight)
    inputs = [tape.constant(wide(a)) for a in (x, gate, weight)]
    u, a = inputs[0], getattr(tape, activation)(inputs[1])
    u = u * a if first else u
    size = shape[-1] // groups
    parts = []
    for start in range(0, shape[-1], size):
        part = u[..., start : start + size]
        mean = tape.total(part * part, -1, keepdims=True) * (1 / size)
        parts.append(part * tape.exp(tape.log(mean + 1e-5) * -0.5))
    exact = tape.concatenate(parts, -1) * inputs[2]
    exact = exact if first else exact * a
    expected = tape.gradients([exact], [wide(bar)], inputs)
    assert_close([y], [exact.value], dtype, "y")
    assert_close(back(bar), expected, dtype, ("x", "gate", "weight"))
    assert y.dtype == dtype


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "dtype"),
    [((2, 70, 3), 16, "float32"), ((1, 33, 2, 5), 20, "bfloat16")],
)
def test_chunk_cumsum(shape, size, dtype, reverse):
    x = -abs(random(0, shape)).at[:, ::7].set(-1e4)
    x = x.astype(dtype)
    bar = random(1, shape)
    (high, low), back = jax.vjp(
        jax.jit(
            lambda x: cumsum.chunk_cumsum(x, size, reverse=reverse),
        ),
        x,
    )
    (gradient,) = back((bar, 0 * bar))
    exact, expected = np.zeros(shape), np.zeros(shape)
    for start in range(0, shape[1], size):
        part = slice(start, start + size)
        exact[:, part] = summed(wide(x)[:, part], reverse)
        expected[:, part] = summed(wide(bar)[:, part], not reverse)
    # Behind gates of -1e4 the small ones keep their digits.
    assert np.abs(wide(high) + wide(low) - exact).max() < 1e-7
    assert_close([gradient], [expected], dtype, "x")


def summed(x, reverse):
    if reverse:
        return np.cumsum(x[:, ::-1], 1)[:, ::-1]
    return np.cumsum(x, 1)


def test_vmap_is_one_larger_batch():
    x, gate = random(0, (3, 2, 9, 16)), random(1, (3, 2, 9, 16))
    weight = random(2, (16,))

    def loss(x, gate, weight):
        y = norm.gated_rms_norm(x, gate, weight)
        return jnp.sum(y * y), y

    run = jax.jit(jax.vmap(jax.grad(loss, (0, 2), has_aux=True), (0, 0, None)))
    (x_bar, weight_bar), y = run(x, gate, weight)
    for i in range(3):
        (one_x, one_weight), one = jax.grad(loss, (0, 2), has_aux=True)(
            x[i], gate[i], weight
        )
        np.testing.assert_array_equal(y[i], one)
        np.testing.assert_array_equal(x_bar[i], one_x)
        np.testing.assert_allclose(weight_bar[i], one_weight, rtol=1e-6)


def test_vmap_over_a_weight():
    x, weights = random(0, (1, 9, 16)), random(1, (2, 3, 16))

    def run(weight):
        return convolution.short_convolution(x, weight)[0]

    made = jax.vmap(run)(weights)
    for i in range(2):
        np.testing.assert_array_equal(made[i], run(weights[i]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: convolution.short_convolution(x, x[0], activation="relu"),
            "activation must be one of (None, 'silu'), got 'relu'",
        ),
        (
            lambda x: norm.gated_rms_norm(x, x[:, :1], x[0, 0]),
            "got x (1, 4, 16), gate (1, 1, 16), weight (16,)",
        ),
        (
            lambda x: norm.gated_rms_norm(x, x, x[0, 0], groups=3),
            "groups must divide 16, got 3",
        ),
        (
            lambda x: cumsum.chunk_cumsum(x, 0),
            "chunk_size must be at least 1, got 0",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call(jnp.ones((1, 4, 16)))
    assert words in str(caught.value)
