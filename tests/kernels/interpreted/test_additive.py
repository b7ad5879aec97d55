"""Additive operators by kernels, whole, against their plain JAX form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops

B, T, K, V = 2, 24, 16, 16
BOUND = 2e-5  # of the largest number in a result


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def documents():
    ids = np.sort(np.random.default_rng(1).integers(0, 4, size=(B, T)), axis=1)
    ids[:, 5:8] = -1
    return jnp.asarray(ids, jnp.int32)


def gated(implementation, axis_name, ids, q, k, v, gate, initial):
    return ops.gated_linear_attention(
        q,
        k,
        v,
        -jax.nn.softplus(gate),
        initial_state=initial,
        segment_ids=ids,
        axis_name=axis_name,
        form="chunk",
        implementation=implementation,
    )


def both_ways(run, inputs):
    """Values, and gradients of a weighted sum of them."""

    def loss(*inputs):
        y, state = run(*inputs)
        weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return jnp.sum(y * weights) + jnp.sum(state * state), (y, state)

    numbers = tuple(range(len(inputs)))
    gradients, values = jax.jit(jax.grad(loss, numbers, has_aux=True))(*inputs)
    return *values, *gradients


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        bound = BOUND * max(1, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def inputs_of(channels):
    gate = (B, T, 2, K) if channels else (B, T, 2)
    return arrays((B, T, 1, K), (B, T, 1, K), (B, T, 2, V), gate, (B, 2, K, V))


@pytest.mark.parametrize("channels", [False, True])
def test_documents(channels):
    """Grouped heads, padding, initial and final state."""
    inputs = inputs_of(channels)
    run = lambda name: functools.partial(gated, name, None, documents())  # noqa: E731
    assert_same(both_ways(run("triton"), inputs), both_ways(run("xla"), inputs))
    assert ops.chosen_implementations()["gated_linear_attention"] == "xla"


def test_ssd_and_default():
    """Kernels are the default where they run; x is wide, B and C are not."""
    x, dt, a, b, c = arrays((1, T, 2, V), (1, T, 2), (2,), *2 * [(1, T, 1, K)])
    dt, a = jax.nn.softplus(dt), -jnp.exp(a)

    def run(implementation, *inputs):
        return ops.ssd(*inputs, form="chunk", implementation=implementation)

    found = both_ways(functools.partial(run, None), (x, dt, a, b, c))
    assert ops.chosen_implementations()["ssd"] == "triton"
    assert_same(
        found, both_ways(functools.partial(run, "xla"), (x, dt, a, b, c))
    )


def test_retention_mapped_and_scanned():
    """vmap folds into the batch; remat and scan repeat the kernels."""
    q, k, v = arrays((2, B, T, 1, K), (2, B, T, 1, K), (2, B, T, 1, V))
    initial = jnp.zeros((B, 1, K, V))

    def run(implementation, q, k, v):
        def retain(state, tokens):
            y, state = ops.retention(
                *tokens,
                initial_state=state,
                form="chunk",
                implementation=implementation,
            )
            return state, y

        state, ys = jax.lax.scan(jax.checkpoint(retain), initial, (q, k, v))
        mapped, _ = jax.vmap(lambda *tokens: retain(initial, tokens)[::-1])(
            q, k, v
        )
        return ys + mapped, state

    assert_same(
        both_ways(functools.partial(run, "triton"), (q, k, v)),
        both_ways(functools.partial(run, "xla"), (q, k, v)),
    )


def test_mapped_over_gates_of_heads():
    """They have no batch to fold into: one launch after another, or none."""
    inputs = arrays((B, 8, 1, 4), (B, 8, 1, 4), (B, 8, 2, 4), (2, 2))

    def run(implementation, q, k, v, gates):
        def retain(gates):
            return ops.retention(
                q,
                k,
                v,
                log_decay=-jax.nn.softplus(gates),
                form="chunk",
                implementation=implementation,
            )

        return jax.vmap(retain)(gates)

    assert_same(
        both_ways(functools.partial(run, "triton"), inputs),
        both_ways(functools.partial(run, "xla"), inputs),
    )
    q, k, v, gates = inputs
    nothing = functools.partial(run, "triton", q, k)
    assert nothing(v, gates[:0])[0].shape == (0, *v.shape)
    y, _ = jax.vmap(nothing, (0, None))(v[None][:0], gates[:1])
    assert y.shape == (0, 1, *v.shape)


@pytest.mark.parametrize("channels", [False, True])
def test_mapped_over_gates_of_tokens(channels):
    """One launch over a larger batch, in either direction."""
    inputs = inputs_of(channels)

    def loss(gates):
        q, k, v, _, initial = inputs
        y, _ = gated("triton", None, None, q, k, v, gates, initial)
        return jnp.sum(y)

    gates = jnp.stack([inputs[3]] * 2)
    mapped = jax.make_jaxpr(jax.vmap(jax.grad(loss)))(gates)
    assert "scan[" not in str(mapped)


@pytest.mark.parametrize(
    ("channels", "shards", "check_vma"),
    [(False, (1, 2), False), (False, (1, 8), True), (True, (2, 2), True)],
)
def test_sharded(channels, shards, check_vma):
    """Over rows and time, with initial and final state."""
    inputs = inputs_of(channels)
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh(
        shards,
        ("rows", "time"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[: math.prod(shards)],
    )
    tokens, rows = spec("rows", "time"), spec("rows")
    run = jax.shard_map(
        functools.partial(gated, "triton", "time"),
        mesh=mesh,
        in_specs=(tokens,) * 5 + (rows,),
        out_specs=(tokens, rows),
        check_vma=check_vma,
    )
    found = both_ways(functools.partial(run, documents()), inputs)
    plain = functools.partial(gated, "xla", None, documents())
    assert_same(found, both_ways(plain, inputs))


def test_refusals():
    q, k, v, gate, _ = inputs_of(False)
    attend = functools.partial(
        ops.gated_linear_attention, implementation="triton"
    )
    for options, reason in (
        (dict(form="recurrent"), "has no form 'recurrent', only 'chunk'"),
        (dict(chunk_size=24), "takes a chunk_size of 16, 32 here, got 24"),
    ):
        with pytest.raises(ValueError, match=f"triton: {reason}"):
            attend(q, k, v, gate, **options)
    wide = jnp.zeros((1, 8, 1, 257))
    with pytest.raises(ValueError, match="K and V up to 256, got K = 257"):
        attend(wide, wide, wide, jnp.zeros((1, 8, 1)))
    with pytest.raises(ValueError, match="takes no empty inputs"):
        attend(*(jnp.zeros((0, *x.shape[1:])) for x in (q, k, v, gate)))
