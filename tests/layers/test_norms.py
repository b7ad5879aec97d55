"""Norms against numpy, in both orders of norm and gate."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import layers
from seqjax.layers import activations


def _rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def _silu(x):
    return x / (1 + np.exp(-x))


def _inputs(key):
    a, b, c = jax.random.split(jax.random.key(key), 3)
    x = jax.random.normal(a, (2, 3, 8))
    gate = jax.random.normal(b, (2, 3, 8))
    return x, gate, jax.random.normal(c, (8,))


def test_rms_norm():
    x, _, scale = _inputs(0)
    y = layers.RMSNorm().apply({"params": {"scale": scale}}, x)
    expected = _rms(np.float64(x)) * np.float64(scale)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_statistics_are_float32_for_bfloat16():
    # 256 squares of 100 overflow nothing and lose nothing in float32.
    x = jnp.full((1, 256), 100.0, jnp.bfloat16)
    y = layers.RMSNorm().apply({"params": {"scale": jnp.ones(256)}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(y), 1.0)


def test_norm_then_gate():
    x, gate, scale = _inputs(1)
    y = layers.GatedRMSNorm().apply({"params": {"scale": scale}}, x, gate)
    x, gate, scale = map(np.float64, (x, gate, scale))
    expected = _rms(x) * scale * _silu(gate)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_gate_then_norm_in_groups():
    x, gate, scale = _inputs(2)
    norm = layers.GatedRMSNorm(gate_first=True, groups=2)
    y = norm.apply({"params": {"scale": scale}}, x, gate)
    x, gate, scale = map(np.float64, (x, gate, scale))
    gated = (x * _silu(gate)).reshape(2, 3, 2, 4)
    expected = _rms(gated).reshape(2, 3, 8) * scale
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_swiglu():
    x = jax.random.normal(jax.random.key(3), (2, 3, 4))
    mlp = layers.SwiGLU(6)
    params = mlp.init(jax.random.key(4), x)
    kernels = {
        name: np.float64(leaf["kernel"])
        for name, leaf in params["params"].items()
    }
    x64 = np.float64(x)
    hidden = _silu(x64 @ kernels["gate"]) * (x64 @ kernels["up"])
    np.testing.assert_allclose(
        mlp.apply(params, x), hidden @ kernels["down"], rtol=2e-5, atol=1e-6
    )


def test_gelu_and_its_slope_inside_shard_map():
    gelu = activations.named("gelu")
    mesh = jax.make_mesh(
        (2,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def slope(x):
        return jax.grad(lambda x: jnp.sum(gelu(x)))(x)

    x = np.linspace(-6, 6, 26, dtype=np.float32)
    split = jax.P("seq")
    found = jax.jit(
        jax.shard_map(
            lambda x: (gelu(x), slope(x), jax.jvp(slope, (x,), (x,))[1]),
            mesh=mesh,
            in_specs=split,
            out_specs=split,
        )
    )(x)
    x = np.float64(x)
    below = np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    expected = x * below, below + x * density, x * (2 - x * x) * density
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rotation_depends_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(5), (2, 1, 1, 1, 8))

    def product(i, j):
        at = [jnp.full((1, 1), p, jnp.int32) for p in (i, j)]
        a, b = layers.rotate(q, at[0], 100.0), layers.rotate(k, at[1], 100.0)
        return np.sum(np.float64(a) * np.float64(b))

    np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-5)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_rotation_angles():
    x = jnp.ones((1, 1, 1, 4))
    y = layers.rotate(x, jnp.full((1, 1), 3, jnp.int32), 100.0)[0, 0, 0]
    # Pairs (0, 2) turned by 3, (1, 3) by 3 / 10.
    angle = np.array([3.0, 0.3])
    expected = np.concatenate(
        [np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5)
