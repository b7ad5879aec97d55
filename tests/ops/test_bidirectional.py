"""Both directions of time, against two calls on documents taken apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from tests.conformance import spec

T = 24
P = jax.sharding.PartitionSpec


def problem(seed=0):
    """Three documents and padding anywhere; q, k, v, log_decay and ids."""
    rng = np.random.default_rng(seed)
    q, k = (np.float32(rng.normal(size=(2, T, 2, 4))) for _ in range(2))
    v = np.float32(rng.normal(size=(2, T, 2, 3)))
    gate = np.float32(-np.exp(rng.normal(size=(2, T, 2)) - 1))
    ids = np.zeros((2, T), np.int32)
    ids[0, 7:], ids[0, 15:], ids[0, [0, 10, 23]] = 4, 9, -1
    ids[1, 3:9], ids[1, 9:] = -1, 2
    return (q, k, v, gate), ids


def by_hand(op, inputs, ids, turned=None):
    """Forward and backward outputs, one document at a time in numpy order."""
    y = [np.zeros_like(inputs[2]) for _ in range(2)]
    for row in range(2):
        for document in set(ids[row]) - {-1}:
            there = np.flatnonzero(ids[row] == document)
            for out, order, given in (
                (y[0], there, inputs),
                (y[1], there[::-1], turned or inputs),
            ):
                one = [x[row : row + 1, order] for x in given]
                out[row, order] = op(*one)[0][0]
    return y


scan = functools.partial(ops.gated_linear_attention, form="recurrent")
GATE = np.float32(np.random.default_rng(5).random((2, T, 2)))


@pytest.mark.parametrize(
    "combine,join",
    [
        ("sum", lambda f, b: f + b),
        ("concat", lambda f, b: np.concatenate([f, b], -1)),
        ("gate", lambda f, b: GATE[..., None] * f + (1 - GATE[..., None]) * b),
    ],
)
def test_equals_each_document_both_ways(combine, join):
    inputs, ids = problem()
    gate = jnp.asarray(GATE) if combine == "gate" else None
    chunked = functools.partial(ops.gated_linear_attention, chunk_size=16)
    y = jax.jit(
        lambda *x: ops.bidirectional(
            chunked, *x, combine=combine, gate=gate, segment_ids=ids
        )
    )(*inputs)
    expected = join(*by_hand(scan, inputs, ids))
    assert spec.error(y, expected) <= 2e-6
    assert not np.asarray(y)[ids < 0].any()


def test_other_inputs_backward_and_parameters_bound():
    rng = np.random.default_rng(1)
    (_, k, v, gate), ids = problem()
    A = jnp.float32([-1.0, -0.2])
    x = (
        np.float32(v),
        -gate,
        np.float32(k),
        np.float32(rng.normal(size=k.shape)),
    )
    turned = tuple(np.float32(rng.random(z.shape)) for z in x)

    def op(x, dt, B, C, **where):
        return ops.ssd(x, dt, A, B, C, **where)

    y = ops.bidirectional(op, *x, backward_inputs=turned, segment_ids=ids)
    order = (x[2], x[3], x[0], x[1])

    def alone(B, C, x, dt):
        return ops.ssd(x, dt, A, B, C, form="recurrent")

    there = (turned[2], turned[3], turned[0], turned[1])
    forward, backward = by_hand(alone, order, ids, there)
    assert spec.error(y, forward + backward) <= 2e-6


def test_sub_steps_of_a_token_stay_in_order():
    rng = np.random.default_rng(2)
    q = np.float32(rng.normal(size=(1, 6, 2, 4)))
    k = np.float32(rng.normal(size=(1, 12, 2, 4)) / 2)
    v = np.float32(rng.normal(size=(1, 12, 2, 3)))
    beta = np.float32(rng.random((1, 12, 2)))
    op = functools.partial(ops.gated_delta_product, num_householder=2)

    def flip(x):
        n = x.shape[1] // 6
        return x.reshape(1, 6, n, *x.shape[2:])[:, ::-1].reshape(x.shape)

    forward, _ = op(q, k, v, beta)
    backward, _ = op(*(flip(x) for x in (q, k, v, beta)))
    y = ops.bidirectional(op, q, k, v, beta)
    assert spec.error(y, forward + flip(np.asarray(backward))) <= 1e-6


def test_gradients_flow_both_ways_and_stay_in_their_document():
    inputs, ids = problem()

    def loss(*inputs):
        y = ops.bidirectional(
            ops.gated_linear_attention, *inputs, segment_ids=ids
        )
        return jnp.sum(y[0, 11] ** 2)  # document 4 of row 0: tokens 7 .. 14

    grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*inputs)
    mine = (np.arange(2)[:, None] == 0) & (ids == 4)
    for g in grads[1:]:
        assert not np.asarray(g)[~mine].any()
    assert np.asarray(grads[2])[0, 7:15][[0, 1, 2, 4, 5, 6, 7]].all()


@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_equals_whole(check_vma):
    inputs, ids = problem()
    mesh = jax.make_mesh(
        (4,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:4],
    )
    time = P(None, "seq")

    def run(axis_name, *args):
        return ops.bidirectional(
            ops.gated_linear_attention,
            *args[:-1],
            segment_ids=args[-1],
            axis_name=axis_name,
        )

    mapped = jax.shard_map(
        functools.partial(run, "seq"),
        mesh=mesh,
        in_specs=time,
        out_specs=time,
        check_vma=check_vma,
    )

    def both(function, inputs):
        y, pull = jax.vjp(lambda *x: function(*x, ids), *inputs)
        return y, pull(jnp.cos(y))

    expected = jax.jit(functools.partial(both, functools.partial(run, None)))
    got = jax.jit(functools.partial(both, mapped))(inputs)
    for a, b in zip(
        jax.tree.leaves(got), jax.tree.leaves(expected(inputs)), strict=True
    ):
        assert spec.error(a, b) <= 2e-6


def test_the_gate_at_padding_reaches_nothing():
    inputs, ids = problem()

    def run(gate, *inputs):
        return ops.bidirectional(
            scan, *inputs, combine="gate", gate=gate, segment_ids=ids
        )

    @jax.jit
    def both(gate):
        y, pull = jax.vjp(run, gate, *inputs)
        return y, pull(jnp.cos(jnp.where(ids[..., None, None] < 0, 0, y)))

    y, grads = both(jnp.where(ids[..., None] < 0, jnp.nan, GATE))
    expected = both(jnp.where(ids[..., None] < 0, 0.5, GATE))
    for a, b in zip(
        jax.tree.leaves((y, grads)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(y)[ids < 0].any()
    assert not np.asarray(grads[0])[ids < 0].any()


def test_every_id_is_a_document():
    inputs, ids = problem()
    large = np.where(ids == 9, 2**31 - 1, ids).astype(np.int32)
    run = jax.jit(lambda ids: ops.bidirectional(scan, *inputs, segment_ids=ids))
    np.testing.assert_array_equal(run(large), run(ids))


def test_no_tokens_give_no_output():
    inputs = [jnp.zeros((2, 0, 2, n)) for n in (4, 4, 3)]
    ids = jnp.zeros((2, 0), jnp.int32)
    for chosen in (None, ids):
        y = ops.bidirectional(ops.retention, *inputs, segment_ids=chosen)
        assert y.shape == (2, 0, 2, 3)


def refused(argument, came, *inputs, op=ops.linear_attention, **options):
    with pytest.raises(ValueError) as caught:
        ops.bidirectional(op, *inputs, **options)
    assert argument in str(caught.value) and came in str(caught.value)


def test_what_makes_no_sense_is_refused():
    (q, k, v, _), _ = problem()
    refused("combine", "'mean'", q, k, v, combine="mean")
    refused("gate", "'sum'", q, k, v, gate=q[..., 0])
    refused("gate", "None", q, k, v, combine="gate")
    refused("inputs", "none")
    refused("backward_inputs", "2", q, k, v, backward_inputs=(q, k))
    refused("input 2", "(2,)", q, k, jnp.zeros(2))
    for name, value in (
        ("initial_state", jnp.zeros((2, 2, 4, 3))),
        ("axis_name", "seq"),
    ):
        op = functools.partial(ops.linear_attention, **{name: value})
        refused(name, "bound", q, k, v, op=op)


def test_arrays_that_do_not_fit_are_refused():
    (q, k, v, _), ids = problem()
    refused("op", "NoneType", q, k, v, op=None)
    refused("input 0", "float", 1.0, k, v)
    refused("input 1", "list", q, [1.0], v)
    refused("input 0", "(3,)", jnp.zeros(3))
    empty = jnp.zeros((2, 0, 2, 4))
    refused("input 1", "(2, 24, 2, 4)", empty, k, v)
    refused("segment_ids", "(2, 23)", q, k, v, segment_ids=ids[:, 1:])
    refused("segment_ids", "list", q, k, v, segment_ids=[[0] * T] * 2)
    refused("segment_ids", "float32", q, k, v, segment_ids=np.float32(ids))
    refused("backward_inputs", "ndarray", q, k, v, backward_inputs=q)
    refused("backward_inputs[2]", "None", q, k, v, backward_inputs=(q, k, None))
    turned = (q, k, v[..., :2])
    refused(
        "backward_inputs[2]", "(2, 24, 2, 2)", q, k, v, backward_inputs=turned
    )
    for gate, came in (
        (0.5, "float"),
        (ids, "int32"),
        (jnp.ones(T), "(24,)"),
        (jnp.ones((5, T)), "(5, 24)"),
        (jnp.ones((2, T, 3)), "(2, 24, 3)"),
        (jnp.ones((2, T, 2, 3, 1)), "(2, 24, 2, 3, 1)"),
    ):
        refused("gate", came, q, k, v, combine="gate", gate=gate)
