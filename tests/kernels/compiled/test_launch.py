"""A kernel in a program for an H200, by each of the two launchers."""

import re

import jax
import jax.numpy as jnp
import pytest

from seqjax_kernels import _versions
from seqjax_kernels import devices
from seqjax_kernels import launch
from seqjax_kernels import registry
from tests.kernels.compiled import h200
from tests.kernels.interpreted import toy

T, K = 70, 32
X, BIAS, W = (
    jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    for shape in ((T, K), (K,), (K, K))
)


def run(x, bias, w, launcher=None, **constants):
    (y,) = launch.call(
        toy.toy_kernel,
        x,
        bias,
        w,
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(3, 1, 1),
        constants=dict(T=T, K=K, BT=32, MISTAKE="none") | constants,
        launcher=launcher,
    )
    return y


def targets(compiled):
    return re.findall(r'custom_call_target="(\w+)"', compiled.as_text())


@pytest.mark.parametrize(
    ("launcher", "target"),
    [
        (None, "triton_kernel_call_ffi"),
        ("direct", "triton_kernel_call_ffi"),
        ("jax_triton", "triton_kernel_call"),
    ],
)
def test_each_launcher(launcher, target):
    """Lowers and compiles, alone and under vmap."""

    def many(x, bias, w):
        return jax.vmap(lambda x: run(x, bias, w, launcher))(x)

    alone = h200.compile_for(lambda *a: run(*a, launcher=launcher), X, BIAS, W)
    assert targets(alone) == [target]
    batch = jax.ShapeDtypeStruct((2, *X.shape), X.dtype)
    assert target in targets(h200.compile_for(many, batch, BIAS, W))


def test_the_default_is_a_call_of_the_newer_interface():
    """XLA records no others in a CUDA graph."""
    for launcher, typed in ((None, True), ("jax_triton", False)):
        text = h200.compile_for(
            lambda *a, name=launcher: run(*a, name), X, BIAS, W
        ).as_text()
        assert ("API_VERSION_TYPED_FFI" in text) == typed


def test_absent_inputs():
    assert targets(h200.compile_for(lambda x, w: run(x, None, w), X, W)) == [
        "triton_kernel_call_ffi"
    ]
    with pytest.raises(devices.Unsupported, match="use launcher='direct'"):
        h200.compile_for(lambda x, w: run(x, None, w, "jax_triton"), X, W)


def test_inside_shard_map_with_checked_axes():
    mesh = registry.abstract_gpu("H200")
    spec = jax.sharding.PartitionSpec
    with jax.sharding.use_abstract_mesh(mesh):
        sharded = jax.shard_map(
            lambda x, w: run(x, None, w),
            mesh=mesh,
            in_specs=(spec("x"), spec()),
            out_specs=spec("x"),
        )
        assert jax.eval_shape(sharded, X, W).shape == (T, K)


def test_every_kernel_of_a_device_is_for_it():
    for kind, arch in (("H200", 90), ("A100", 80), ("B200", 100)):
        with (
            jax.sharding.use_abstract_mesh(registry.abstract_gpu(kind)),
            launch.record() as recorded,
        ):
            jax.eval_shape(lambda *a: run(*a), X, BIAS, W)
        (launched,) = recorded
        assert launched.program.arch == arch and launched.grid == (3, 1, 1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("NVIDIA V100", "known are GH200"),
        ("AMD MI300X", "known are GH200"),
    ],
)
def test_unknown_devices(kind, words):
    device = jax.sharding.AbstractDevice(kind, None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        with pytest.raises(devices.Unsupported, match=words):
            jax.eval_shape(lambda *a: run(*a), X, BIAS, W)
        assert words in (launch.why_not() or "")


def test_old_and_absent_devices():
    assert devices.check_arch(80) == 80
    with pytest.raises(devices.Unsupported, match="8.0 or newer, got 7.5"):
        devices.check_arch(75)
    reason = launch.why_not()
    assert reason is not None and "JAX runs on cpu here" in reason
    with pytest.raises(devices.Unsupported, match="TRITON_INTERPRET=1"):
        run(*(jnp.zeros(s.shape, s.dtype) for s in (X, BIAS, W)))
    with pytest.raises(ValueError, match="TRITON_INTERPRET is None"):
        run(X, BIAS, W, "interpret")


def test_these_releases_are_tested_together():
    here = tuple(
        _versions.installed(n) for n in ("jaxlib", "triton", "jax-triton")
    )
    assert here in _versions.TESTED


@pytest.mark.parametrize("versions", _versions.TESTED)
def test_tested_releases_are_taken(versions):
    for route in launch.LAUNCHERS:
        assert _versions.judge(*versions, route) is None


@pytest.mark.parametrize(
    ("versions", "route", "words"),
    [
        (("0.11.2", None, None), "direct", "Triton is not installed; pip"),
        (("0.11.2", "3.9.0", "0.3.1"), "direct", "Triton 3.6, got 3.9.0"),
        (("0.12.0.1", "3.7.1", "0.4.1"), "interpret", "Triton 3.6, got 3.7.1"),
        (("0.9.2", "3.6.0", "0.3.1"), "direct", "0.10.2 or newer, got 0.9.2"),
        (("0.11.2", "3.6.0", None), "jax_triton", "jax-triton is not inst"),
        (("0.11.2", "3.6.0", "0.4.1"), "jax_triton", "0.3.1, got 0.4.1"),
        (("0.12.0.1", "3.6.0", None), "direct", None),
        (("0.11.2", "3.6.0", "0.4.1"), "direct", None),
    ],
)
def test_other_releases(versions, route, words):
    found = _versions.judge(*versions, route)
    assert found is None if words is None else words in found
