"""The matrix of every operator: against its oracle, and in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from tests.conformance import cases
from tests.conformance import spec
from tests.conformance import table
from tests.conformance.rows import convolution

LENGTH = 20


def linear_in_its_values(operator):
    """The row without what as_matrix refuses."""
    if operator is convolution.CONVOLUTION:
        return convolution.with_activation(operator, "none", 4)
    return operator


def matrix_of(operator, inputs, segment_ids):
    op = getattr(ops, operator.function)
    return ops.as_matrix(
        functools.partial(op, **operator.options),
        **inputs,
        segment_ids=segment_ids,
    )


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda o: o.name)
def test_columns_are_the_oracles_answers_to_unit_values(operator):
    operator = linear_in_its_values(operator)
    name = "v" if "v" in operator.make_inputs(cases.rng_for(0), 1, 1) else "x"
    ids = np.zeros((2, LENGTH), np.int32)
    ids[0, 9:] = 3
    ids[0, [4, 13, 14]] = -1
    problem = cases.draw(operator, 2, LENGTH, ids)
    problem = problem.replace(state=operator.zero_state(2))
    inputs = dict(problem.inputs)
    given = dict(inputs)
    if "bias" in inputs:
        inputs["bias"] = np.zeros_like(inputs["bias"])
        del given["bias"]
    got = jax.jit(functools.partial(matrix_of, operator))(given, ids)
    columns = []
    for j in range(inputs[name].shape[1]):
        unit = np.zeros_like(inputs[name])
        unit[:, j] = 1
        answer = spec.expect(
            operator, problem.replace(inputs=inputs | {name: unit}), False
        )
        columns.append(answer.y)
    expected = np.moveaxis(np.stack(columns), (0, 2), (-1, -2))
    if got.ndim < expected.ndim:  # one matrix for all value channels
        expected, got = np.broadcast_arrays(expected, got[:, :, None])
    assert spec.error(got, expected) <= 1e-5
    n = operator.steps.get(name, 1)
    future = np.triu(np.ones((LENGTH, LENGTH), bool), 1).repeat(n, axis=-1)
    assert not np.asarray(got)[..., future].any()
    across = (ids[0][:, None] != ids[0][None]) | (ids[0] < 0)[:, None]
    assert not np.asarray(got)[0][..., across.repeat(n, axis=-1)].any()


def qkv(rng, T=12, H=2, K=4, V=3):
    q, k = (jnp.float32(rng.normal(size=(1, T, H, K))) for _ in range(2))
    return q, k, jnp.float32(rng.normal(size=(1, T, H, V)))


def scores(q, k):
    return np.einsum("bihk,bjhk->bhij", q, k) * q.shape[-1] ** -0.5


def decays(log_decay):
    """exp of the sum of the gates in (j, i], 0 above the diagonal."""
    total = np.cumsum(np.moveaxis(np.asarray(log_decay, float), 1, -1), -1)
    return np.tril(np.exp(total[..., :, None] - total[..., None, :]))


def test_closed_forms():
    rng = np.random.default_rng(0)
    q, k, v = qkv(rng)
    T = q.shape[1]
    gate = -np.exp(rng.normal(size=(1, T, 2))).astype(np.float32)
    tril = np.tril(np.ones((T, T)))
    s = scores(q, k)
    softmax = np.exp(s) * tril / (np.exp(s) * tril).sum(-1, keepdims=True)
    unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.random((1, T, 2)).astype(np.float32)
    erase = np.tril(np.einsum("bihk,bjhk->bhij", unit, unit), -1)
    erase = erase * np.moveaxis(beta, 1, -1)[..., None]
    written = np.linalg.inv(np.eye(T) + erase)
    written = written * np.moveaxis(beta, 1, -1)[..., None, :]
    for got, expected in (
        (ops.as_matrix(ops.linear_attention, q, k, v), s * tril),
        (
            ops.as_matrix(ops.gated_linear_attention, q, k, v, gate),
            s * decays(gate),
        ),
        (ops.as_matrix(ops.softmax_attention, q, k, v), softmax),
        (
            ops.as_matrix(ops.delta_rule, q, unit, v, beta),
            scores(q, unit) * tril @ written,
        ),
        (
            ops.as_matrix(ops.linear_recurrence, v, gate[..., None]),
            np.broadcast_to(decays(gate)[:, :, None], (1, 2, 3, T, T)),
        ),
    ):
        assert got.shape == expected.shape
        assert spec.error(got, expected) <= 2e-6


def test_the_matrix_times_the_values_is_the_output():
    q, k, v = qkv(np.random.default_rng(1))
    y, _ = ops.retention(q, k, v, form="parallel")
    for form in ("recurrent", "chunk", "parallel"):
        M = ops.as_matrix(ops.retention, q, k, v, form=form)
        again = jnp.einsum("bhij,bjhv->bihv", M, v)
        assert spec.error(again, y) <= 1e-6


def test_half_precision_inputs_give_a_float32_matrix():
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv(np.random.default_rng(2)))
    M = ops.as_matrix(ops.linear_attention, q, k, v)
    assert M.dtype == jnp.float32
    exact = scores(*(np.asarray(x, np.float32) for x in (q, k)))
    assert spec.error(M, np.tril(exact)) <= 1e-6


@pytest.mark.parametrize("positional", [False, True])
def test_bound_arguments_count_as_given(positional):
    """As many value channels as tokens: the shapes alone tell nothing."""
    rng = np.random.default_rng(4)
    q, k, v = qkv(rng, T=3, H=1, V=3)
    beta = jnp.float32(rng.random(v.shape))
    expected = ops.as_matrix(ops.delta_rule, q, k, v, beta)
    assert expected.shape == (1, 1, 3, 3, 3)
    if positional:
        op = functools.partial(ops.delta_rule, q, k)
        got = ops.as_matrix(op, v, beta)
    else:
        got = ops.as_matrix(
            functools.partial(ops.delta_rule, beta=beta), q, k, v
        )
    np.testing.assert_array_equal(got, expected)


def test_bound_queries_tell_the_length():
    q, k, v = (jnp.zeros((1, n, 1, 2)) for n in (300, 600, 600))
    op = functools.partial(
        ops.gated_delta_product, q, num_householder=2, beta=k[..., 0]
    )
    shape = jax.eval_shape(functools.partial(ops.as_matrix, op), k, v).shape
    assert shape == (1, 1, 300, 600)


def refused(argument, came, *inputs, op=ops.linear_attention, **options):
    with pytest.raises(ValueError) as caught:
        ops.as_matrix(op, *inputs, **options)
    assert argument in str(caught.value) and came in str(caught.value)


def test_what_has_no_matrix_is_refused():
    q, k, v = qkv(np.random.default_rng(3))
    long = [jnp.zeros((1, 513, 1, 2))] * 3
    refused("T must be at most 512", "513", *long)
    state = jnp.zeros((1, 2, 4, 3))
    refused("initial_state", "no matrix", q, k, v, initial_state=state)
    bound = functools.partial(ops.linear_attention, initial_state=state)
    refused("initial_state", "no matrix", q, k, v, op=bound)
    x, w = jnp.zeros((1, 5, 4)), jnp.zeros((4, 4))
    convolve = ops.short_convolution
    refused("activation", "linear", x, w, op=convolve, activation="silu")
    refused("bias", "constant", x, w, op=convolve, bias=jnp.zeros(4))
    refused("axis_name", "one device", q, k, v, axis_name="seq")
    ids = jnp.zeros((1, 5), jnp.int32)
    refused("values", "segment_ids", ids, op=ops.segment_starts)
    refused("do not fit", "colour", q, k, v, colour=3)
    refused("v", "int32", q, k, v.astype(jnp.int32))
    refused("v", "(1, 12)", q, k, v[:, :, 0, 0])
    refused("v must be an array", "None", q, k, None)
    refused("v must be an array", "str", q, k, "v")
    refused("q must be an array", "None", None, k, v)
    refused("q must be an array", "str", "q", k, v)
    refused("k must have shape", "(12,)", q, k[0, :, 0, 0], v)
    bound = functools.partial(ops.linear_attention, v=v)
    refused("v must come beside", "bound", q, k, op=bound)

    def rest(q, k, v, **rest):
        return ops.linear_attention(q, k, v, **rest)

    refused("initial_state", "no matrix", q, k, v, op=rest, initial_state=state)
