"""Every exchange of every kind of map is the walk from device to device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import recurrence
from seqjax.recurrence import devices
from seqjax.recurrence import exchange as exchanges
from seqjax.recurrence import levels
from seqjax.recurrence import packing

P = jax.sharding.PartitionSpec
DEVICES, BATCH, LENGTH = 5, 4, 2  # no power of two
HEADS, KEY, VALUE, LEVELS = 2, 3, 4, 4


def normal(rng, *shape):
    return rng.normal(size=(DEVICES, BATCH, *shape)).astype(np.float32)


def decay(rng, *shape, dtype=np.float32):
    log = -np.exp(normal(rng, *shape)).astype(dtype)
    if dtype == np.complex64:
        log = log + 1j * normal(rng, *shape)
    return recurrence.Decay(log, rng.random(log.shape) < 0.1)


def affine(transition, rng, *shape):
    return recurrence.Affine(transition, normal(rng, *shape))


STATE = (HEADS, KEY, VALUE)
KINDS = {
    "identity": lambda rng: affine(recurrence.Decay(), rng, *STATE),
    "scalar": lambda rng: affine(decay(rng, HEADS), rng, *STATE),
    "diagonal": lambda rng: affine(decay(rng, HEADS, KEY), rng, *STATE),
    "complex": lambda rng: recurrence.Affine(
        decay(rng, KEY, dtype=np.complex64),
        normal(rng, KEY) + 1j * normal(rng, KEY),
    ),
    "dense": lambda rng: affine(
        recurrence.Dense(0.5 * normal(rng, HEADS, KEY, KEY)), rng, *STATE
    ),
    "levels": lambda rng: affine(
        levels.Merge(
            decay(rng, HEADS),
            rng.integers(0, LEVELS, (DEVICES, BATCH)).astype(np.int32),
        ),
        rng,
        HEADS,
        LEVELS,
        KEY,
        VALUE,
    ),
    "stabilised": lambda rng: recurrence.Stabilised(
        decay(rng, HEADS),
        1e-3 * normal(rng, HEADS),
        10 * normal(rng, HEADS),
        normal(rng, *STATE),
    ),
}


def draw_ids(rng):
    """Shards [P, B, T] of two tokens, half of them padding."""
    ids = np.cumsum(rng.random((BATCH, DEVICES * LENGTH)) < 0.3, axis=1)
    ids = np.where(rng.random(ids.shape) < 0.5, -1, 7 * ids)
    shards = ids.reshape(BATCH, DEVICES, LENGTH).astype(np.int32)
    return shards.swapaxes(0, 1)


def one_by_one(maps, initial, ids):
    """States in front of every device, the obvious way."""
    state, before, found = initial, jnp.full(BATCH, -1), []
    for r in range(DEVICES):
        own = jax.tree.map(lambda x, r=r: x[r], maps)
        if ids is not None:
            first = jnp.where(ids[r] < 0, 10**6, ids[r]).min(axis=1)
            cut = (first < 10**6) & (before >= 0) & (first != before)
            state = own.forget(state, cut)
            before = jnp.maximum(before, ids[r].max(axis=1))
        found.append(state)
        state = own.apply(state)
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def exchanged(exchange, maps, initial, ids):
    mesh = jax.make_mesh(
        (DEVICES,),
        ("seq",),
        devices=jax.devices()[:DEVICES],
        axis_types=(jax.sharding.AxisType.Auto,),
    )

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("seq"), P(), P("seq") if ids is not None else None),
        out_specs=P("seq"),
    )
    def run(maps, initial, ids):
        own = jax.tree.map(lambda x: x[0], maps)
        initial = recurrence.match_varying(initial, {"seq"})
        if isinstance(own, recurrence.Stabilised):
            function = recurrence.incoming_stabilised
        else:
            function = recurrence.incoming_state
        ids = None if ids is None else ids[0]
        state = function(own, initial, ids, "seq", exchange)
        return jax.tree.map(lambda x: x[None], state)

    return run(maps, initial, ids)


@pytest.mark.parametrize(
    "packed", [True, pytest.param(False, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_exchanges_equal_the_walk(kind, packed):
    @jax.jit
    def both(maps, initial, ids, bar):
        """States and gradients of the walk and of each exchange."""
        leaves, structure = jax.tree.flatten(maps)
        real = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
        floats = [x for x, r in zip(leaves, real, strict=True) if r]

        def states(function):
            def of_floats(floats, initial):
                rest = iter(floats)
                full = [
                    next(rest) if r else x
                    for x, r in zip(leaves, real, strict=True)
                ]
                maps = jax.tree.unflatten(structure, full)
                return function(maps, initial, ids)

            y, pull = jax.vjp(of_floats, floats, initial)
            return y, pull(bar)

        ways = [functools.partial(exchanged, e) for e in devices.EXCHANGES]
        return [states(f) for f in (one_by_one, *ways)]

    for seed in range(4):
        rng = np.random.default_rng(seed)
        maps = KINDS[kind](rng)
        of_states = maps.update
        if kind == "stabilised":
            of_states = maps.peak, maps.update
        bar = jax.tree.map(
            lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype),
            of_states,
        )
        initial = jax.tree.map(lambda x: x[0], bar)
        ids = draw_ids(rng) if packed else None
        if packed:  # a shard of padding alone changes nothing
            empty = (ids < 0).all(axis=2)
            maps = jax.tree.map(
                lambda one, x, empty=empty: np.where(
                    empty.reshape(empty.shape + (1,) * (x.ndim - 2)), one, x
                ),
                jax.tree.map(
                    np.asarray, jax.vmap(lambda m: m.identity())(maps)
                ),
                maps,
            )
        if kind == "stabilised":  # -inf has no cotangent
            first, _ = one_by_one(maps, initial, ids)
            bar = np.where(np.isfinite(first), bar[0], 0), bar[1]
        expected, *results = both(maps, initial, ids, bar)
        for result in results:
            jax.tree.map(
                functools.partial(
                    np.testing.assert_allclose, rtol=1e-6, atol=2e-6
                ),
                result,
                expected,
            )


def test_a_message_of_no_rows():
    tree = {"state": jnp.zeros((0, 2, 3)), "flag": jnp.zeros(0, bool)}
    packed, unpack = packing.pack(tree)
    assert packed.shape == (0, 7)
    assert jax.tree.map(jnp.shape, unpack(packed)) == jax.tree.map(
        jnp.shape, tree
    )


def test_levels_compose_and_transpose():
    rng = np.random.default_rng(0)
    maps = KINDS["levels"](rng)
    a, b, c = (jax.tree.map(lambda x, i=i: x[i], maps) for i in range(3))
    left, right = c.compose(b).compose(a), c.compose(b.compose(a))
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, left, right)
    x, y = rng.normal(size=(2, *a.update.shape)).astype(np.float32)
    np.testing.assert_allclose(
        c.compose(b).apply(x), c.apply(b.apply(x)), rtol=1e-6, atol=1e-6
    )
    forward = jnp.sum(a.transition.act(x) * y)
    back = jnp.sum(x * a.transition.transpose().act(y))
    np.testing.assert_allclose(forward, back, rtol=1e-5)


def test_the_default_goes_by_bytes_and_devices():
    def default(transition, size, count):
        affine = recurrence.Affine(transition, np.zeros((1, *size), np.float32))
        return exchanges.default_exchange(affine, count)

    def dense(heads, key):
        matrix = np.zeros((1, heads, key, key), np.float32)
        return recurrence.Dense(matrix), (heads, key, key)

    assert default(recurrence.Decay(), (64, 128, 128), 256) == "all_gather"
    for count, expected in ((2, "all_gather"), (16, "all_gather")):
        assert default(*dense(8, 64), count) == expected
    assert default(*dense(8, 64), 32) == "prefix_scan"
    assert default(*dense(32, 128), 2) == "all_gather"
    assert default(*dense(32, 128), 4) == "prefix_scan"
    assert default(*dense(32, 128), 1) == "all_gather"
