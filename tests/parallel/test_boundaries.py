"""Documents drawn at random: sharded and alone are the same function."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops

P = jax.sharding.PartitionSpec
BATCH = 3
# Device counts and shards of every kind; one program each.
LAYOUTS = {
    "all_gather": (3, 5),
    "prefix_scan": (5, 3),
    "ring": (4, 1),
}


@st.composite
def rows(draw, length):
    """Ids of a row: documents of any length, padding anywhere."""
    borders = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    padding = draw(st.sets(st.integers(0, length - 1)))
    step = draw(st.integers(1, 2**30 // length))
    ids = np.cumsum(borders) * step
    ids[list(padding)] = -1
    return ids.astype(np.int32)


@functools.cache
def programs(exchange, devices, shard):
    """The sharded operators and the plain one: values and gradients."""
    mesh = jax.make_mesh(
        (devices,),
        ("seq",),
        devices=jax.devices()[:devices],
        axis_types=(jax.sharding.AxisType.Auto,),
    )
    time = P(None, "seq")

    def additive(inputs, initial, ids, **where):
        q, k, v, gates = inputs
        where |= dict(form="recurrent", segment_ids=ids)
        y, state = ops.gated_linear_attention(
            q, k, v, gates, initial_state=initial, **where
        )
        z, other = ops.delta_rule(
            q, k, v, jnp.exp(-(k[..., 0] ** 2)), initial_state=initial, **where
        )
        return y + 2 * z, state + 2 * other

    def sharded(inputs, initial, ids):
        return jax.shard_map(
            functools.partial(additive, axis_name="seq", exchange=exchange),
            mesh=mesh,
            in_specs=(time, P(), time),
            out_specs=(time, P()),
        )(inputs, initial, ids)

    def both(inputs, initial, ids, bars):
        def run(function):
            y, pull = jax.vjp(lambda i, s: function(i, s, ids), inputs, initial)
            return y, pull(bars)

        return run(sharded), run(additive)

    rng = np.random.default_rng(devices)
    shape = (BATCH, devices * shard, 2, 4)
    q, k, v = rng.normal(size=(3, *shape)).astype(np.float32)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    gates = -np.exp(rng.normal(size=shape[:3]) * 2).astype(np.float32)
    gates[rng.random(gates.shape) < 0.1] = -np.inf
    initial, bar = rng.normal(size=(2, BATCH, 2, 4, 4)).astype(np.float32)
    y_bar = rng.normal(size=shape).astype(np.float32)
    args = ((q, k, v, gates), initial), (y_bar, bar)
    program = jax.jit(both)
    return devices * shard, program, args


@pytest.mark.parametrize("exchange", LAYOUTS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(data=st.data())
def test_documents_anywhere(exchange, data):
    check(programs(exchange, *LAYOUTS[exchange]), data)


@pytest.mark.full
@hypothesis.settings(max_examples=25)
@hypothesis.given(
    data=st.data(),
    exchange=st.sampled_from(sorted(LAYOUTS)),
    devices=st.integers(1, 8),
    shard=st.integers(1, 9),
)
def test_any_devices_and_lengths(data, exchange, devices, shard):
    check(programs(exchange, devices, shard), data)


def check(program, data):
    length, both, (inputs, bars) = program
    ids = np.stack([data.draw(rows(length)) for _ in range(BATCH)])
    got, expected = both(*inputs, ids, bars)
    for a, b in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
