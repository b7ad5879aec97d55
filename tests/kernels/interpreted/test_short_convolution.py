"""`seqjax.ops.short_convolution` as a kernel, against its plain JAX form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops

B, T, D, W = 2, 32, 20, 4
NAMES = ("x", "weight", "bias", "initial_state")


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = ((B, T, D), (W, D), (D,), (B, W - 1, D))
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def documents(padded):
    rng = np.random.default_rng(1)
    ids = np.sort(rng.integers(0, 5, size=(B, T)), axis=1)
    if padded:
        ids[rng.random((B, T)) < 0.3] = -1
        ids[0, 8:16] = -1  # a whole shard of four
    return jnp.asarray(ids, jnp.int32)


def convolve(implementation, segment_ids, axis_name, *arrays):
    x, weight, bias, initial = arrays
    return ops.short_convolution(
        x,
        weight,
        bias=bias,
        activation="silu",
        initial_state=initial,
        segment_ids=segment_ids,
        axis_name=axis_name,
        implementation=implementation,
    )


def both_ways(run, arrays):
    """Values and gradients of a weighted sum of both results."""

    def loss(*arrays):
        y, state = run(*arrays)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(y * weights) + jnp.sum(state * state), (y, state)

    gradients, values = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    )(*arrays)
    return dict(zip(("y", "state", *NAMES), values + gradients, strict=True))


def assert_same(found, expected, bound):
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32),
            np.asarray(value, np.float32),
            atol=bound * float(jnp.abs(value).max()),
            err_msg=name,
        )


@pytest.mark.parametrize("packing", ["one", "packed", "padded"])
def test_values_and_gradients(packing):
    ids = None if packing == "one" else documents(packing == "padded")
    kernel = functools.partial(convolve, "triton", ids, None)
    plain = functools.partial(convolve, "xla", ids, None)
    arrays = inputs()
    assert_same(both_ways(kernel, arrays), both_ways(plain, arrays), 3e-6)


def test_bfloat16():
    arrays = inputs("bfloat16")
    kernel = functools.partial(convolve, "triton", None, None)
    plain = functools.partial(convolve, "xla", None, None)
    assert_same(both_ways(kernel, arrays), both_ways(plain, arrays), 1e-2)


@pytest.mark.parametrize("packing", ["one", "padded"])
@pytest.mark.parametrize("checked", [True, False])
def test_sharded(packing, checked):
    ids = None if packing == "one" else documents(True)
    mesh = jax.make_mesh(
        (4,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.sharding.PartitionSpec
    time, whole = spec(None, "seq"), spec()

    def run(*arrays):
        sharded = jax.shard_map(
            lambda ids, *a: convolve("triton", ids, "seq", *a),
            mesh=mesh,
            in_specs=(time, time, whole, whole, whole),
            out_specs=(time, whole),
            check_vma=checked,
        )
        return sharded(ids, *arrays)

    arrays = inputs()
    plain = functools.partial(convolve, "xla", ids, None)
    assert_same(both_ways(run, arrays), both_ways(plain, arrays), 3e-6)


def test_it_is_the_first_choice():
    arrays = inputs()
    convolve(None, None, None, *arrays)
    assert ops.chosen_implementations()["short_convolution"] == "triton"


def test_refusals():
    arrays = inputs()
    x, weight = arrays[:2]
    for change, words in (
        (dict(x=x[:, :0]), "takes no empty x"),
        (dict(weight=jnp.ones((9, D))), "takes at most 8 taps, got 9"),
    ):
        with pytest.raises(ValueError, match=words):
            ops.short_convolution(
                **(dict(x=x, weight=weight) | change), implementation="triton"
            )
