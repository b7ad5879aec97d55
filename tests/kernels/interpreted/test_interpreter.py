"""The interpreter is right, and sees what a GPU would not forgive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax_kernels import launch
from tests.kernels.interpreted import toy

T, K, BT = 70, 32, 32


def run(x, bias, w, mistake="none"):
    (y,) = launch.call(
        toy.toy_kernel,
        x,
        bias,
        w,
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(-(-x.shape[0] // BT), 1, 1),
        constants=dict(T=x.shape[0], K=K, BT=BT, MISTAKE=mistake),
    )
    return y


def inputs(dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], (T, K), dtype),
        jax.random.normal(keys[1], (K,), dtype),
        jax.random.normal(keys[2], (K, K), dtype),
    )


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float32", 5e-6), ("float16", 5e-4), ("bfloat16", 4e-3)],
)
def test_products(dtype, bound):
    x, bias, w = inputs(dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    for given in (None, bias):
        if given is not None:
            exact = exact + np.asarray(bias, np.float64)
        y = np.asarray(jax.jit(run)(x, given, w), np.float64)
        # bfloat16 is rounded to the nearest: half a unit in the last place.
        assert (np.abs(y - exact) <= bound * (1 + np.abs(exact))).all()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("reads beyond the end", "reads x outside of its 2240 cells, at 2048"),
        ("writes beyond the end", "writes y outside of its 2240 cells"),
        ("arithmetic in bfloat16", "convert to float32 first"),
        ("exponential of a large number", "overflow"),
        ("leaves a row out", "32 of 2240 cells of y are never written, the"),
        ("writes a row twice", "writes y a second time at cell 992"),
        ("writes an input", "writes the input x"),
        ("reads an output", "reads the output y"),
        ("overflows", "multiply overflows 32 bits"),
        ("atomics", "atomics depend on the order of programs"),
    ],
)
def test_mistakes(mistake, words):
    x, _, w = inputs("bfloat16")
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(run(x, None, w, mistake))
    # And it goes on as if nothing had been.
    assert np.isfinite(np.asarray(run(x, None, w), np.float32)).all()


def test_vmap_and_scan():
    x, bias, w = inputs()
    many = jnp.stack([x, 2 * x])
    once = run(x, bias, w)
    np.testing.assert_array_equal(
        jax.vmap(run, (0, None, None))(many, bias, w)[0], once
    )
    _, scanned = jax.lax.scan(lambda _, x: (None, run(x, bias, w)), None, many)
    np.testing.assert_array_equal(scanned[0], once)


@pytest.mark.parametrize("checked", [True, False])
def test_shard_map(checked):
    x, bias, w = inputs()
    x = jnp.concatenate([x, x])
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        lambda x, bias, w: run(x, bias, w),
        mesh=mesh,
        in_specs=(spec("data"), spec(), spec()),
        out_specs=spec("data"),
        check_vma=checked,
    )
    y = jax.jit(sharded)(x, bias, w)
    np.testing.assert_array_equal(y[:T], run(x[:T], bias, w))


def test_empty():
    x, bias, w = inputs()
    assert run(x[:0], bias, w).shape == (0, K)
    with pytest.raises(ValueError, match=r"grid is \(0, 1, 1\), and outputs"):
        launch.call(
            toy.toy_kernel,
            x,
            bias,
            w,
            outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
            grid=(0, 1, 1),
            constants=dict(T=T, K=K, BT=BT, MISTAKE="none"),
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(launcher="nvcc"), "must be one of direct, jax_triton, interpret"),
        (dict(launcher="direct"), "TRITON_INTERPRET is '1'"),
        (dict(grid=(1, 70000, 1)), "three numbers of at most"),
        (dict(grid=(1, 1)), "three numbers of at most"),
        (dict(constants=dict(T=T, K=K, BT=BT)), r"missing \['MISTAKE'\]"),
    ],
)
def test_refusals(change, words):
    x, bias, w = inputs()
    given = dict(
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(3, 1, 1),
        constants=dict(T=T, K=K, BT=BT, MISTAKE="none"),
    )
    with pytest.raises(ValueError, match=words):
        launch.call(toy.toy_kernel, x, bias, w, **(given | change))
