"""Operators under JAX's transformations, and with half-precision inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

operators = pytest.mark.parametrize(
    "operator", table.OPERATORS, ids=lambda o: o.name
)
P = jax.sharding.PartitionSpec


def _to_half(x):
    return x.astype(jnp.bfloat16).astype(np.float32)


@operators
def test_half_precision_over_a_batch_axis(operator):
    """bfloat16, no state, no segments, defaults, remat, jit in jit, shard_map.

    Inputs are rounded beforehand, so only the results' rounding remains.  Where
    a core stands for the row, so it does under the transformations.
    """
    if operator.complex_inputs:
        pytest.skip("complex numbers have no half precision")
    plain = cases.plain_board(operator, 65)
    problem = cases.cast(plain, jnp.bfloat16)
    exact = cases.cast(problem, np.float32)
    exact = exact.replace(state=operator.zero_state(spec.BATCH))
    # the state's cotangent is not rounded: the state is float32
    ct_state = () if operator.capacity_is_length else plain.ct_state
    expected = spec.expect(operator, exact.replace(ct_state=ct_state))
    kept = () if operator.capacity_is_length else expected.state
    expected = spec.Result(expected.y, kept, None, expected.grads)

    def op(inputs, state):
        return runner.outputs(operator, inputs, state, None)

    mapped = _over_rows(operator, op) if operator.core is None else op

    @jax.jit
    def both(inputs, ct_y, ct_state):
        return runner.pull(mapped, inputs, None, ct_y, ct_state)

    out = jax.device_get(both(problem.inputs, problem.ct_y, ct_state))
    result = spec.Result(*out)
    assert result.y.dtype == jnp.bfloat16
    state_dtype = jnp.bfloat16 if operator.capacity_is_length else jnp.float32
    assert result.state[0].dtype == state_dtype
    if operator.capacity_is_length:
        result = spec.Result(result.y, (), None, result.grads)
    # At most twice the error of the float32 algorithm on the same rounded
    # inputs, its results rounded where ours are.
    plain32 = runner.run(
        operator,
        exact.replace(ct_state=ct_state),
        **runner.length_options(operator),
    )
    rounded = spec.Result(
        _to_half(plain32.y),
        kept and plain32.state,
        None,
        {name: _to_half(g) for name, g in plain32.grads.items()},
    )
    allowed = spec.errors(rounded, expected)
    for name in operator.parameters:
        # a few numbers, whose parts the devices add up in bfloat16
        allowed[f"grad {name}"] = max(allowed[f"grad {name}"], 2**-9)
    for name, error in spec.errors(result, expected).items():
        assert error <= 2 * allowed[name] + 1e-6, (name, error, allowed[name])
    spec.check(
        spec.Result(expected.y, result.state),
        spec.Result(expected.y, expected.state),
        1e-5,
        "state",
    )


def _over_rows(operator, op):
    """Remat and jit, the batch over two devices."""
    mesh = jax.make_mesh(
        (2,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:2],
    )
    rows = P("data")

    def mapped(inputs, state):
        specs = {n: P() if n in operator.parameters else rows for n in inputs}
        return jax.shard_map(
            jax.jit(jax.remat(op)),
            mesh=mesh,
            in_specs=(specs, P()),
            out_specs=((rows, rows), rows),
        )(inputs, state)

    return mapped


TWICE = [o for o in table.OPERATORS if o.second_order]


def second_order_problem(operator):
    """Three tokens, and directions in which the inputs move."""
    problem = cases.cast(
        cases.draw(operator, 2, 3, cases.one_segment(2, 3)), np.float64
    )
    rng = cases.rng_for("second", operator.name)
    direction = {
        n: rng.normal(size=x.shape).astype(x.dtype)
        for n, x in problem.inputs.items()
    }
    return problem, direction


def products_of(operator, problem, direction):
    """(inputs, state) -> for each form, the direction's Hessian product."""
    forms = [f for f in operator.forms if f != "chunk"] or [None]

    def gradient(form, state):
        def loss(inputs):
            options = runner.options_of(operator, form)
            (y, leaves), _ = runner.outputs(
                operator, inputs, state, problem.segment_ids, **options
            )
            total = jnp.sum(y * problem.ct_y).real
            for x, ct in zip(leaves, problem.ct_state, strict=True):
                total += jnp.sum(x * ct).real
            return total

        return jax.grad(loss)

    def products(inputs, state):
        return {
            str(form): jax.jvp(gradient(form, state), (inputs,), (direction,))[
                1
            ]
            for form in forms
        }

    return products


@pytest.mark.parametrize(
    "operator", [o for o in TWICE if o.core is not None], ids=lambda o: o.name
)
def test_second_order_exists(operator):
    """No rule of ours stands in its way; the numbers are JAX's affair."""
    problem, direction = second_order_problem(operator)
    with jax.enable_x64(True):
        products = products_of(operator, problem, direction)
        shapes = jax.eval_shape(products, problem.inputs, problem.state)
    for grads in shapes.values():
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(
            np.shape, problem.inputs
        )


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(
            operator,
            id=operator.name,
            marks=() if operator.core is None else pytest.mark.full,
        )
        for operator in TWICE
    ],
)
def test_second_order(operator):
    """Forward over reverse, where the contract promises it."""
    problem, direction = second_order_problem(operator)
    with jax.enable_x64(True):
        products = jax.jit(products_of(operator, problem, direction))
        got = jax.device_get(products(problem.inputs, problem.state))

    def oracle_gradients(h):
        moved = {n: x + h * direction[n] for n, x in problem.inputs.items()}
        return spec.expect(operator, problem.replace(inputs=moved)).grads

    h = 1e-5
    up, down = oracle_gradients(h), oracle_gradients(-h)
    for form, grads in got.items():
        for name, g in grads.items():
            expected = (up[name] - down[name]) / (2 * h)
            assert spec.error(g, expected) <= 1e-6, (form, name)


@operators
def test_one_trace_a_shape(operator):
    """Another packing, other values: the same program."""
    problem = cases.plain_board(operator)
    form = operator.default_form()
    options = runner.board_options(operator, form)
    runner.run(operator, problem, **options)
    before = dict(runner.traces)
    assert before
    ids = cases.mixed_segments(*problem.segment_ids.shape)
    runner.run(operator, problem.replace(segment_ids=ids), **options)
    runner.run(operator, cases.board(operator)[0], **options)
    assert runner.traces == before


@operators
def test_same_bits_again(operator):
    problem = cases.board(operator)[0]
    options = runner.board_options(operator, operator.default_form())
    first = runner.run_board(operator, operator.default_form()).parts()
    again = runner.run(operator, problem, **options).parts()
    for name, x in first.items():
        assert spec.equal_bits(x, again[name]), name
