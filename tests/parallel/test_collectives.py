"""What the sequence-parallel operators say to each other, read in the HLO."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from seqjax import ops
from tests.parallel import hlo

DEVICES = 4
HEADS, SIZE = 2, 8
STATE = HEADS * SIZE * SIZE
IDS = 4  # two ids as halves of 16 bits
TIME = P(None, "seq")


def gla(x, gates, **options):
    return ops.gated_linear_attention(x, x, x, gates, chunk_size=16, **options)


def linear(x, gates, **options):
    del gates
    return ops.linear_attention(x, x, x, chunk_size=16, **options)


def delta(x, gates, **options):
    return ops.delta_rule(x, x, x, jnp.exp(gates), chunk_size=16, **options)


def scan(x, gates, **options):
    return ops.linear_recurrence(x, gates[..., None], **options)


def mlstm(x, gates, **options):
    return ops.mlstm(x, x, x, gates, gates, chunk_size=16, **options)


# Numbers a row: of the state, and of the transition.
FAMILIES = {
    linear: (STATE, 1),  # a flag: whether a document starts in the shard
    gla: (STATE, HEADS + HEADS),
    delta: (STATE, HEADS * SIZE * SIZE),
    scan: (HEADS * SIZE, 2 * HEADS * SIZE),
    # C, n and m; the decay as two floats and a flag.
    mlstm: (STATE + HEADS * SIZE + HEADS, 3 * HEADS),
}


@functools.cache
def compiled(op, length, exchange, *, states=False):
    """Values and gradients; with `states` also of and through the state."""
    mesh = jax.make_mesh(
        (DEVICES,),
        ("seq",),
        devices=jax.devices()[:DEVICES],
        axis_types=(jax.sharding.AxisType.Auto,),
    )

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(TIME, TIME, TIME, P()),
        out_specs=(TIME, P()),
    )
    def run(x, gates, segment_ids, initial):
        return op(
            x,
            gates,
            segment_ids=segment_ids,
            initial_state=initial,
            axis_name="seq",
            exchange=exchange,
        )

    def loss(x, gates, initial, segment_ids):
        y, state = run(x, gates, segment_ids, initial)
        total = jnp.sum(y**2)
        return total + jnp.sum(state**2) if states else total

    x = jax.ShapeDtypeStruct((1, length, HEADS, SIZE), jnp.float32)
    gates = jax.ShapeDtypeStruct((1, length, HEADS), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shape = (1, HEADS, SIZE) if op is scan else (1, HEADS, SIZE, SIZE)
    initial = jax.ShapeDtypeStruct(shape, jnp.float32) if states else None
    wanted = (0, 1, 2) if states else (0, 1)
    function = jax.jit(jax.value_and_grad(loss, wanted))
    return function.lower(x, gates, initial, ids).compile()


def formula(op, exchange):
    """Collectives and their bytes: forward, then backward."""
    state, transition = FAMILIES[op]
    one = 4 * (state + transition + IDS)
    if exchange == "all_gather":
        kind = "all-gather"
        return [(kind, DEVICES * one)], [(kind, DEVICES * 4 * state)]
    kind = "collective-permute"
    if exchange == "prefix_scan":
        messages = math.ceil(math.log2(DEVICES))
        back = 4 * (state + transition)
        return [(kind, one)] * messages, [(kind, back)] * messages
    messages = DEVICES - 1
    return [(kind, 4 * (state + 2))] * messages, [(kind, 4 * state)] * messages


def exchanged(op, length, exchange):
    """Those of the program, without the loss's own sum."""
    found = hlo.collectives(compiled(op, length, exchange))
    return sorted(x for x in found if x != ("all-reduce", 4))


@pytest.mark.parametrize("exchange", ["all_gather", "prefix_scan", "ring"])
def test_bytes_follow_the_formula_whatever_the_length(exchange):
    expected = sorted(sum(formula(gla, exchange), []))
    assert exchanged(gla, DEVICES * 32, exchange) == expected
    assert exchanged(gla, DEVICES * 256, exchange) == expected


@pytest.mark.parametrize(
    "op,exchange",
    [
        (linear, "all_gather"),
        (delta, "all_gather"),
        (delta, "prefix_scan"),
        (delta, "ring"),
        (scan, "all_gather"),
        (mlstm, "all_gather"),
    ],
)
def test_bytes_of_every_kind_of_transition(op, exchange):
    expected = sorted(sum(formula(op, exchange), []))
    assert exchanged(op, DEVICES * 32, exchange) == expected


def test_states_add_one_sum_each():
    found = hlo.collectives(compiled(gla, DEVICES * 32, None, states=True))
    found = [x for x in found if x != ("all-reduce", 4)]
    plain = sum(formula(gla, "all_gather"), [])
    assert sorted(found) == sorted([*plain, *[("all-reduce", 4 * STATE)] * 2])


@pytest.mark.parametrize(
    "op,both", [(gla, True), (linear, True), (mlstm, True), (delta, False)]
)
def test_local_work_and_collectives_do_not_wait(op, both):
    """Forward no local loop waits for a message; additive rules send theirs
    without waiting either, forward and backward.
    """
    graph = hlo.entry(compiled(op, DEVICES * 32, "all_gather"))

    def found(mark, *others):
        """Names and whether they are of the backward pass."""
        return [
            (name, "transpose(" in line)
            for name, (line, _) in graph.items()
            if mark in line and all(x in line for x in others)
        ]

    gathers = found(" all-gather(")
    loops = found(" while(", "/local/")
    assert len(gathers) == 2
    assert {backward for _, backward in loops} == {True, False}
    for (loop, backward), (gather, back) in itertools.product(loops, gathers):
        if backward == back and (both or not backward):
            assert not hlo.reaches(graph, gather, loop)
        if backward == back and both:
            assert not hlo.reaches(graph, loop, gather)
