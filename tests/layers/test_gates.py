"""Gates and norms: golden vectors, extreme inputs, the order of the two."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.layers import gates
from seqjax.layers import norms
from tests.conformance import spec

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def _cases(file):
    notes = json.loads((GOLDEN / "ops.json").read_text())["ops"][file]["cases"]
    with np.load(GOLDEN / f"{file}.npz") as stored:
        arrays = dict(stored)
    for note in notes:
        groups = {"in": {}, "out": {}, "ct": {}, "grad": {}, "opt": {}}
        for name, x in arrays.items():
            case, kind, part = name.split("/")
            if case == note["case"]:
                groups[kind][part] = x
        yield pytest.param(
            groups, note["float32_error"], id=f"{file}-{note['case']}"
        )


def _gate(case, inputs):
    x = inputs["x"]
    if "A_log" in inputs:
        shape = (1, 1, -1) + (1,) * (x.ndim - 3)
        A_log, bias = inputs["A_log"].reshape(shape), inputs["dt_bias"]
        bias = bias.reshape((1, 1, *bias.shape))
        if "lower_bound" in case["opt"]:
            floor = case["opt"]["lower_bound"].item()
            return gates.floored_decay(x, A_log, bias, floor)
        return gates.softplus_decay(x, A_log, bias)
    if "normaliser" in case["opt"]:
        return gates.sigmoid_decay(x, case["opt"]["normaliser"].item())
    # RWKV-6's is as strong as it likes, RWKV-7's no stronger than 0.6065.
    strong = case["out"]["g"].min() < -0.61
    return gates.exponential_decay(x) if strong else gates.bounded_decay(x)


def _norm(case, inputs):
    x, opt = inputs["x"], case["opt"]
    eps = opt["eps"].item()
    if "weight" not in inputs:
        return norms.l2_normalize(x, eps)
    weight, group = inputs["weight"], opt["group"].item()
    if "one_plus" in opt:
        weight = 1 + weight
    params = {"params": {"scale": weight}}
    if "z" in inputs:
        layer = norms.GatedRMSNorm(
            opt["activation"].item(),
            gate_first=not opt["before_gate"].item(),
            groups=x.shape[-1] // group,
            eps=eps,
        )
        return layer.apply(params, x, inputs["z"])
    if group == x.shape[-1]:
        return norms.RMSNorm(eps).apply(params, x)
    params = {"params": {"scale": weight.reshape(-1, group)}}
    layer = norms.HeadLayerNorm(eps, use_bias=False)
    heads = x.reshape(*x.shape[:-1], -1, group)
    return layer.apply(params, heads).reshape(x.shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "function,part,case,float32_error",
    [
        pytest.param(function, part, *case.values, id=case.id)
        for function, part, file in (
            (_gate, "g", "gates"),
            (_norm, "y", "gated_norms"),
        )
        for case in _cases(file)
    ],
)
def test_golden(function, part, case, float32_error, dtype):
    with jax.enable_x64(dtype == "float64"):
        inputs = {n: jnp.asarray(x, dtype) for n, x in case["in"].items()}
        y, pull = jax.vjp(functools.partial(function, case), inputs)
        assert y.dtype == dtype
        (grads,) = pull(jnp.asarray(case["ct"][part], dtype))
    got = {f"out/{part}": y} | {f"grad/{n}": x for n, x in grads.items()}
    wanted = {f"out/{part}": case["out"][part]} | {
        f"grad/{n}": x for n, x in case["grad"].items()
    }
    assert set(wanted) <= set(got)
    for name, value in wanted.items():
        bound = max(2e-6, 10 * float32_error.get(name, 0.0))
        bound = bound if dtype == "float32" else 1e-10
        assert spec.error(np.asarray(got[name]), value) <= bound, name


def test_lower_bounds_rise_from_exactly_zero():
    table = jnp.zeros((4, 3))
    np.testing.assert_allclose(
        gates.lower_bounds(table), np.arange(4)[:, None] / 4 * np.ones(3)
    )
    bounds = gates.lower_bounds(
        jax.random.normal(jax.random.key(0), (5, 6), jnp.float32)
    )
    assert (bounds[0] == 0).all() and (np.diff(bounds, axis=0) > 0).all()
    assert (bounds < 1).all()


@pytest.mark.parametrize("bound", [0.0, 1e-6, 0.3, 0.999])
def test_lower_bounded_decay_is_precise_whatever_the_input(bound):
    x = np.float32([-200, -90, -30, -5, -1e-3, 0, 1e-3, 5, 15, 30, 90, 200])
    x64 = np.float64(x)
    forgotten = (1 - np.float64(np.float32(bound))) / (1 + np.exp(x64))
    log_f = -np.logaddexp(0, -x64)
    if bound:
        b = np.float64(np.float32(bound))
        far = np.logaddexp(np.log(b), np.log1p(-b) + log_f)
        near = np.log1p(-np.minimum(forgotten, 0.5))
        log_f = np.where(forgotten < 0.5, near, far)

    def loss(x, bound):
        log_f, k = gates.lower_bounded_decay(x, bound)
        return jnp.sum(log_f) + jnp.sum(k)

    bounds = jnp.full(x.shape, bound, jnp.float32)
    got, k = gates.lower_bounded_decay(jnp.asarray(x), bounds)
    np.testing.assert_allclose(k, forgotten, rtol=2e-6, atol=1e-38)
    np.testing.assert_allclose(got, log_f, rtol=4e-6, atol=1e-38)
    for grad in jax.grad(loss, (0, 1))(jnp.asarray(x), bounds):
        assert np.isfinite(grad).all()
    if bound == 0:
        plain = gates.lower_bounded_decay(jnp.asarray(x), None)
        np.testing.assert_array_equal(got, plain[0])
        np.testing.assert_array_equal(k, plain[1])


def test_gates_are_wide_and_at_most_zero():
    x = jnp.asarray([-3e38, -1e4, -20.0, 0.0, 20.0, 80.0], jnp.float32)
    low = x[1:5].astype(jnp.bfloat16)
    zero = jnp.zeros((1,))
    for gate in (
        lambda x: gates.sigmoid_decay(x, 16.0),
        lambda x: gates.softplus_decay(x, zero, zero),
        lambda x: gates.floored_decay(x, zero, zero, -5.0),
        gates.exponential_decay,
        gates.bounded_decay,
        lambda x: gates.lower_bounded_decay(x, None)[0],
    ):
        assert (gate(x) <= 0).all() and not np.isnan(gate(x)).any()
        assert gate(low).dtype == jnp.float32
