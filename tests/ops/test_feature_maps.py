"""Feature maps: golden values, and the kernels that they stand for."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from seqjax.ops import feature_maps
from tests.conformance import golden
from tests.conformance import spec

MAPS = {
    "taylor": lambda x: feature_maps.taylor(x["x"]),
    "dpfp": lambda x: feature_maps.dpfp(x["x"], nu=2),
    "hedgehog": lambda x: feature_maps.hedgehog(x["x"], x["w"], x["b"]),
    "t2r": lambda x: feature_maps.t2r(x["x"], x["w"]),
    "hadamard": lambda x: feature_maps.hadamard(
        x["x"], x["w1"], x["b1"], x["w2"], x["b2"]
    ),
    "elu_plus_one": lambda x: feature_maps.elu_plus_one(x["x"]),
}


def arrays(file, case):
    """{kind: {name: array}} of a golden case."""
    found = {}
    with np.load(golden.FOLDER / f"{file}.npz") as stored:
        for name in stored.files:
            this, kind, leaf = name.split("/")
            if this == case:
                found.setdefault(kind, {})[leaf] = stored[name]
    return found


def check(results, case, bounds):
    expected = case["out"] | {f"grad {n}": g for n, g in case["grad"].items()}
    for name, x in expected.items():
        bound = bounds.get(name, bounds[None])
        assert spec.error(results[name], x) <= bound, name


@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_golden(name):
    case = arrays("feature_maps", name)
    with jax.enable_x64(True):
        inputs = {n: np.float64(x) for n, x in case["in"].items()}
        y, pull = jax.vjp(MAPS[name], inputs)
        grads = pull(jnp.asarray(case["ct"]["y"], jnp.float64))[0]
    results = {"y": y} | {f"grad {n}": g for n, g in grads.items()}
    check(results, case, {None: 1e-10})


KERNELS = {"based": feature_maps.taylor, "rebased": feature_maps.square}
RUNS = [
    (file, case, dtype, form)
    for file in KERNELS
    for case, dtype, form in (
        ("tiny", np.float64, "parallel"),
        ("t1", np.float64, "parallel"),
        ("t65", np.float64, "chunk"),
        ("t130", np.float32, "recurrent"),
        ("t130", np.float32, "chunk"),
    )
]


def golden_attention(feature_map, normalise, form, q, k, v):
    """The file's convention: the sum of weights plus 1e-6 below."""
    if normalise:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    o, _ = ops.linear_attention(
        q, k, v, feature_map=feature_map, scale=1.0, form=form
    )
    return o[..., :-1] / (o[..., -1:] + 1e-6) if normalise else o


@pytest.mark.parametrize(
    "file,name,dtype,form",
    RUNS,
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_polynomial_attention_equals_golden(file, name, dtype, form):
    case = arrays(file, name)
    index = json.loads((golden.FOLDER / "ops.json").read_text())
    notes = {c["case"]: c for c in index["ops"][file]["cases"]}[name]
    bounds = {None: {"recurrent": 2e-6, "chunk": 1e-5}.get(form)}
    finer = 1.0
    if dtype == np.float64:
        bounds = {None: 1e-10 if notes["stored"] == "float64" else 2e-7}
        # A lone token's weight is 1 whatever its key: what is left of its
        # gradient is rounding, finer in float64 by the ratio of the two.
        finer = np.finfo(np.float64).eps / np.finfo(np.float32).eps
    for part, error in notes["float32_error"].items():
        part = part.removeprefix("out/").replace("grad/", "grad ")
        bounds[part] = max(bounds[None], 10 * finer * error)
    op = functools.partial(
        golden_attention, KERNELS[file], bool(case["opt"]["normalise"]), form
    )

    @jax.jit
    def both(inputs, ct):
        o, pull = jax.vjp(lambda inputs: op(**inputs), inputs)
        return o, pull(ct)[0]

    with jax.enable_x64(dtype == np.float64):
        inputs = {n: x.astype(dtype) for n, x in case["in"].items()}
        o, grads = both(inputs, case["ct"]["o"].astype(dtype))
    check({"o": o} | {f"grad {n}": g for n, g in grads.items()}, case, bounds)


def test_symmetric_maps_are_exact_and_small():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 50, 7)).astype(np.float32)
    s = (np.float64(q) * k).sum(-1) / np.sqrt(7)
    for function, size, kernel in (
        (feature_maps.taylor, 36, 1 + s + s**2 / 2),
        (feature_maps.square, 28, s**2),
    ):
        a, b = function(q), function(k)
        assert a.shape == (50, size)
        product = (np.float64(a) * np.float64(b)).sum(-1)
        np.testing.assert_allclose(product, kernel, rtol=1e-5, atol=1e-6)


def test_based_is_softmax_to_second_order():
    """Small queries: exp(s) and its Taylor polynomial agree to s^3 / 6."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.float32(rng.normal(size=(1, 40, 2, 4))) for _ in range(3))
    soft, _ = ops.softmax_attention(0.05 * q, k, v)
    based, state = ops.linear_attention(
        0.05 * q,
        k,
        v,
        feature_map=feature_maps.taylor,
        normalize=True,
        scale=1.0,
    )
    assert state[0].shape == (1, 2, 15, 4)
    assert spec.error(based, soft) <= 1e-4


def test_half_precision_keeps_float32_features():
    """As much error as the rounding of the inputs and the output causes."""
    rng = np.random.default_rng(2)
    wide = [np.float32(rng.normal(size=(1, 64, 2, 6))) for _ in range(3)]
    half = [jnp.bfloat16(x) for x in wide]
    exact = [np.float32(x) for x in half]
    assert feature_maps.taylor(half[0]).dtype == jnp.float32

    def based(q, k, v):
        return ops.linear_attention(
            q,
            k,
            v,
            feature_map=feature_maps.taylor,
            normalize=True,
            scale=1.0,
        )[0]

    expected = based(*exact)
    rounded = spec.error(jnp.bfloat16(expected), expected)
    assert spec.error(based(*half), expected) <= 2 * rounded


def test_large_inputs_do_not_overflow_elu():
    x = jnp.float32([-1e4, -1.0, 0.0, 1e4])
    y, pull = jax.vjp(feature_maps.elu_plus_one, x)
    np.testing.assert_allclose(y, [0, np.exp(-1), 1, 10001], rtol=1e-6)
    (grad,) = pull(jnp.ones(4))
    np.testing.assert_allclose(grad, [0, np.exp(-1), 1, 1], rtol=1e-6)


def test_dpfp_refuses_more_neighbours_than_there_are():
    with pytest.raises(ValueError, match="nu must be in 1 .. 7"):
        feature_maps.dpfp(jnp.ones((2, 4)), nu=8)


X, W, B = np.ones((2, 4), np.float32), np.ones((5, 4), np.float32), np.ones(5)


@pytest.mark.parametrize(
    "name,args,options,argument,came",
    [
        ("elu_plus_one", (None,), {}, "x", "None"),
        ("relu", ([1.0],), {}, "x", "list"),
        ("taylor", (1.0,), {}, "x", "float"),
        ("square", (np.float32(1),), {}, "x", "()"),
        ("relu", (np.ones(4, int),), {}, "x", "int64"),
        ("taylor", (X[:, :0],), {}, "K at least 1", "(2, 0)"),
        ("square", (X[:, :0],), {}, "K at least 1", "(2, 0)"),
        ("dpfp", (X,), {"nu": 1.0}, "nu", "1.0"),
        ("dpfp", (X,), {"nu": "2"}, "nu", "'2'"),
        ("dpfp", (X,), {"nu": True}, "nu", "True"),
        ("t2r", (X, None), {}, "weight", "None"),
        ("t2r", (X, W[:, :3]), {}, "weight", "(5, 3)"),
        ("hedgehog", (X, W[0]), {}, "weight", "(4,)"),
        ("hedgehog", (X, W, B[:1]), {}, "bias", "(1,)"),
        ("hedgehog", (X, W, B[:, None]), {}, "bias", "(5, 1)"),
        ("hadamard", (X, W, B, W, B[:1]), {}, "bias2", "(1,)"),
        ("hadamard", (X, W, 0.0, W, B), {}, "bias1", "float"),
        ("hadamard", (X, W, B, W[:1], None), {}, "weight2", "(1, 4)"),
    ],
)
def test_what_does_not_fit_is_refused(name, args, options, argument, came):
    with pytest.raises(ValueError) as caught:
        getattr(feature_maps, name)(*args, **options)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert argument in message and came in message
