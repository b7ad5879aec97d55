"""`seqjax.ops.gated_rms_norm` as a kernel, against its plain JAX form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import ops

SHAPE = (4, 6, 2, 24)


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = (SHAPE, SHAPE, SHAPE[-1:])
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def both_ways(run, arrays):
    """Value and gradients of a weighted sum of it."""

    def loss(*arrays):
        y = run(*arrays)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return (y, *gradients)


def assert_same(found, expected, bound):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=bound * np.abs(b).max())


@pytest.mark.parametrize(
    ("options", "dtype", "bound"),
    [
        (dict(activation="sigmoid", eps=0.3), "float32", 3e-6),
        (dict(eps=0.0), "float32", 3e-6),
        (dict(gate_first=True, groups=3), "bfloat16", 1e-2),
    ],
)
def test_values_and_gradients(options, dtype, bound):
    run = functools.partial(ops.gated_rms_norm, **options)
    found, expected = (
        both_ways(functools.partial(run, implementation=name), inputs(dtype))
        for name in ("triton", "xla")
    )
    assert_same(found, expected, bound)


@pytest.mark.parametrize("checked", [True, False])
def test_a_weight_on_every_device(checked):
    """Its gradient is the sum of all devices'."""
    mesh = jax.make_mesh(
        (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.sharding.PartitionSpec
    norm = functools.partial(ops.gated_rms_norm, implementation="triton")
    sharded = jax.shard_map(
        norm,
        mesh=mesh,
        in_specs=(spec("data"), spec("data"), spec()),
        out_specs=spec("data"),
        check_vma=checked,
    )
    plain = functools.partial(ops.gated_rms_norm, implementation="xla")
    assert_same(both_ways(sharded, inputs()), both_ways(plain, inputs()), 3e-6)


def test_it_is_the_first_choice_of_the_layer():
    x, gate, _ = inputs()
    layer = layers.GatedRMSNorm()
    y, _ = layer.init_with_output(jax.random.key(0), x, gate)
    assert ops.chosen_implementations()["gated_rms_norm"] == "triton"
    plain = ops.gated_rms_norm(x, gate, jnp.ones(24), implementation="xla")
    np.testing.assert_allclose(y, plain, atol=1e-6)


def test_refusals():
    run = functools.partial(ops.gated_rms_norm, implementation="triton")
    for rows, width, groups, words in (
        (0, 8, 1, "takes no empty x"),
        (1, 16386, 2, "takes at most 8192 channels a group, got 8193"),
    ):
        x = jnp.ones((rows, width))
        with pytest.raises(ValueError, match=words):
            run(x, x, jnp.ones(width), groups=groups)
