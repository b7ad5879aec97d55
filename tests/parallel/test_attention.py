"""Softmax attention with time sharded: ring, halo, balance, what is moved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from seqjax.parallel import ring
from tests.ops import attention_cases as cases
from tests.parallel import hlo

P = jax.sharding.PartitionSpec
TIME = P(None, "seq")


def mesh_of(devices):
    return jax.make_mesh(
        (devices,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def sharded(devices, **options):
    """(inputs, ids or None) -> output of the operator on so many devices."""

    def local(x, ids):
        x = dict(x)
        q, k, v = (x.pop(name) for name in ("q", "k", "v"))
        return ops.softmax_attention(
            q, k, v, **x, segment_ids=ids, axis_name="seq", **options
        )[0]

    def run(x, ids):
        specs = {name: P() if name == "sink" else TIME for name in x}
        return jax.shard_map(
            local,
            mesh=mesh_of(devices),
            in_specs=(specs, None if ids is None else TIME),
            out_specs=TIME,
        )(x, ids)

    return run


def value_and_grads(function, x, ids, cotangent):
    def loss(x):
        y = function(x, ids)
        return jnp.sum(y * cotangent), y

    run = jax.jit(jax.grad(loss, has_aux=True))
    grads, y = run(x)
    return {"y": y} | grads


@pytest.mark.parametrize(
    ("devices", "packed", "gate", "options"),
    [
        # Parts of 7 tokens in zigzag order; gates of -inf and -1e4.
        (5, True, True, {"exchange": "ring"}),
        # 29 tokens from shards of 14: three hops, or anywhere among padding.
        (5, True, True, {"window": 30}),
        (5, False, False, {"window": 30}),
        (2, True, False, {"exchange": "ring", "causal": False}),
        pytest.param(
            5,
            True,
            False,
            {"exchange": "all_gather", "causal": False},
            marks=pytest.mark.full,
        ),
        pytest.param(
            7,
            False,
            True,
            {"exchange": "ring"},
            marks=pytest.mark.full,
        ),
    ],
)
def test_sharded_equals_whole(devices, packed, gate, options):
    x, ids, cotangent = cases.make(np.float32, gate=gate)
    ids = ids if packed else None
    got = value_and_grads(
        sharded(devices, chunk_size=16, **options), x, ids, cotangent
    )
    options.pop("exchange", None)

    def whole(x, ids):
        return cases.call(x, 0, cases.T, ids, form="parallel", **options)[0]

    expected = value_and_grads(whole, x, ids, cotangent)
    for name, a in expected.items():
        assert cases.relative(got[name], a) < 5e-6, name


def test_zigzag_gives_every_device_as_much_to_do():
    """Pairs of tokens a device looks at, in all of the ring's steps."""
    devices, shard = 4, 6
    length = devices * shard

    def local(x):
        there = ring.to_zigzag(x, "seq")
        return there, ring.from_zigzag(there, "seq")

    x = jnp.arange(length, dtype=jnp.int32).reshape(1, -1, 1)
    run = jax.shard_map(
        local, mesh=mesh_of(devices), in_specs=TIME, out_specs=TIME
    )
    there, back = jax.jit(run)(x)
    np.testing.assert_array_equal(back, x)

    def pairs(order):
        """[devices, steps]"""
        order = np.asarray(order).reshape(devices, shard)
        keys = [np.roll(order, step, axis=0) for step in range(devices)]
        return np.stack(
            [(order[:, :, None] > k[:, None]).sum((1, 2)) for k in keys], 1
        )

    balanced, plain = pairs(there), pairs(x)
    assert balanced.sum() == plain.sum()
    # A step lasts as long as its busiest device, and none waits for another.
    assert (balanced == balanced[:1]).all()
    off = shard * (shard - 1) // 2
    assert balanced.max(0).sum() == off + (devices - 1) * shard**2 // 2
    assert plain.max(0).sum() == off + (devices - 1) * shard**2


def compiled(devices, shard, packed=False, **options):
    """Gradients of bfloat16 attention, B = 1, 2 heads of 8, compiled."""
    run = sharded(devices, **options)

    def loss(x, ids):
        return jnp.sum(run(x, ids).astype(jnp.float32) ** 2)

    length = devices * shard
    half = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    x = {"q": half, "k": half, "v": half}
    return jax.jit(jax.grad(loss)).lower(x, ids if packed else None).compile()


def moved(program):
    """{kind: sorted bytes} of a program's collectives."""
    found = {}
    for kind, size in hlo.collectives(program):
        found.setdefault(kind, []).append(size)
    return {kind: sorted(sizes) for kind, sizes in found.items()}


# Bytes a token: 2 heads of k and of v in bfloat16, and a rank; the sums of
# cotangents in float32.
KEYS, SUMS = 2 * 2 * 8 * 2 + 4, 2 * 2 * 8 * 4


def test_gathered_once_each_way():
    devices, shard = 4, 32
    assert moved(compiled(devices, shard, exchange="all_gather")) == {
        "all-gather": [devices * shard * KEYS],
        "reduce-scatter": [shard * SUMS],
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_window_moves_its_halo(packed):
    found = moved(compiled(4, 32, packed, window=50))
    if packed:
        # Counts and ids of all shards; the halo in messages of 49 tokens.
        assert found.pop("all-gather") == [4 * 5 * 4]
        assert found == {
            "collective-permute": [49 * KEYS] * 3 + [49 * SUMS] * 3
        }
    else:
        # 32 tokens from the neighbour and 17 from the one before it.
        sizes = [n * size for n in (17, 32) for size in (KEYS, SUMS)]
        assert found == {"collective-permute": sorted(sizes)}


def test_a_ring_gathers_nothing_and_holds_its_shard():
    few = compiled(2, 256, exchange="ring")
    many = compiled(8, 1024, exchange="ring")
    for program in (few, many):
        assert set(moved(program)) == {"collective-permute"}
    few, many = (
        program.memory_analysis().temp_size_in_bytes for program in (few, many)
    )
    # Four times the tokens a device, on four times the devices.
    assert many <= 1.1 * 4 * few


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exchange": "prefix_scan"}, "exchange must be one of all_gather, r"),
        ({"exchange": "ring", "window": 3}, "has no meaning with window=3"),
        ({"exchange": "ring", "form": "recurrent"}, "needs form='chunk'"),
        ({"form": "parallel"}, "cannot run with axis_name='seq'"),
        (
            {"initial_state": ops.attention_cache(cases.B, 50, 2, 6, 5)},
            "holds 50 tokens and cannot take 70 more",
        ),
    ],
)
def test_what_is_refused(options, message):
    x, _, _ = cases.make(np.float32, gate=False)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(sharded(2, **options), ids=None), x)


@pytest.mark.parametrize("exchange", ["all_gather", "ring"])
def test_no_row_at_all(exchange):
    shape = jax.ShapeDtypeStruct((0, 16, 2, 4), jnp.bfloat16)
    x = dict.fromkeys("qkv", shape)
    x["log_decay"] = jax.ShapeDtypeStruct((0, 16, 2), jnp.float32)
    run = sharded(4, exchange=exchange)
    grads = jax.eval_shape(jax.grad(lambda x: jnp.sum(run(x, None))), x)
    assert {n: g.shape for n, g in grads.items()} == {
        n: g.shape for n, g in x.items()
    }


def test_a_convolution_longer_than_a_shard_is_refused():
    def run(x):
        weight = jnp.ones((4, 3))
        return ops.short_convolution(x, weight, axis_name="seq")[0]

    mapped = jax.shard_map(run, mesh=mesh_of(4), in_specs=TIME, out_specs=TIME)
    with pytest.raises(ValueError, match=r"T/P = 2 .* the 4 devices .* W = 4"):
        jax.eval_shape(mapped, jnp.zeros((1, 8, 3)))
