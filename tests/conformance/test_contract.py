"""Shapes, dtypes and errors of the contract; nothing here is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import table

operators = pytest.mark.parametrize(
    "operator", table.OPERATORS, ids=lambda o: o.name
)


def shapes_of(operator, inputs, state=None, segment_ids=None, **options):
    """Result types of a call, without running it."""

    def function(inputs, state, segment_ids):
        return runner.call(operator, inputs, state, segment_ids, **options)

    return jax.eval_shape(function, inputs, state, segment_ids)


def small(operator, length=5):
    problem = cases.draw(operator, 2, length, cases.one_segment(2, length))
    return problem


def as_dtypes(inputs, dtypes):
    """Inputs cast in turn to the dtypes given; complex ones stay."""
    return {
        name: x if np.iscomplexobj(x) else x.astype(dtypes[i % len(dtypes)])
        for i, (name, x) in enumerate(inputs.items())
    }


@operators
@pytest.mark.parametrize(
    "dtypes",
    [
        (jnp.float32,),
        (jnp.bfloat16,),
        (jnp.float16,),
        (jnp.float32, jnp.bfloat16, jnp.float16),
        (jnp.bfloat16, jnp.float16, jnp.float32),
    ],
    ids=lambda d: "-".join(x.__name__ for x in d),
)
def test_dtypes(operator, dtypes):
    inputs = as_dtypes(small(operator).inputs, dtypes)
    y, state = shapes_of(operator, inputs)
    assert y.dtype == inputs[operator.output_like].dtype
    if not operator.capacity_is_length:
        for leaf in jax.tree.leaves(state):
            if leaf.dtype != jnp.int32:  # a count of tokens
                assert leaf.dtype in (jnp.float32, jnp.complex64)


@operators
def test_float64_everywhere_or_nowhere(operator):
    with jax.enable_x64(True):
        problem = cases.cast(small(operator), np.float64)
        y, state = shapes_of(operator, problem.inputs)
        assert y.dtype in (jnp.float64, jnp.complex128)
        for leaf in jax.tree.leaves(state):
            assert leaf.dtype not in (jnp.float32, jnp.complex64)
        for name in problem.inputs:
            wide = problem.inputs[name]
            narrow = np.complex64 if np.iscomplexobj(wide) else np.float32
            narrow = wide.astype(narrow)
            with pytest.raises(ValueError, match="float64"):
                shapes_of(operator, problem.inputs | {name: narrow})


@operators
def test_state_dtype(operator):
    inputs = small(operator).inputs
    if operator.complex_inputs:
        raises(
            operator, inputs, "state_dtype", "float32", state_dtype="float32"
        )
        return
    _, state = shapes_of(operator, inputs, state_dtype=jnp.bfloat16)
    floats = [
        x.dtype
        for x in jax.tree.leaves(state)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    assert jnp.bfloat16 in floats
    raises(operator, inputs, "state_dtype", "int32", state_dtype=jnp.int32)
    raises(operator, inputs, "state_dtype", "wide", state_dtype="wide")


def test_each_core_has_a_row():
    rows = {o.name: o for o in table.OPERATORS}
    assert len(rows) == len(table.OPERATORS)
    for operator in table.OPERATORS:
        assert operator.core is None or rows[operator.core].core is None


@pytest.mark.parametrize(
    "operator,form",
    [
        pytest.param(operator, form, id=f"{operator.name}-{form}")
        for operator in table.OPERATORS
        for form in (None, *operator.forms)
    ],
)
def test_shapes(operator, form):
    problem = small(operator, 3)
    y, state = shapes_of(
        operator, problem.inputs, problem.state, problem.segment_ids, form=form
    )
    assert y.shape == problem.ct_y.shape
    before = jax.tree.map(np.shape, problem.state)
    assert jax.tree.map(jnp.shape, state) == before
    kind = jax.tree.structure(problem.state)
    assert jax.tree.structure(state) == kind
    # A batch of no rows has a result of no rows.
    none = jax.tree.map(lambda x: x[:0], problem.state)
    inputs = {
        name: problem.inputs[name][:0]
        for name in operator.timed(problem.inputs)
    }
    y, state = shapes_of(
        operator,
        problem.inputs | inputs,
        none,
        problem.segment_ids[:0],
        form=form,
    )
    assert y.shape == (0, *problem.ct_y.shape[1:])
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(np.shape, none)


def raises(
    operator, inputs, argument, came="", state=None, ids=None, **options
):
    """The call is refused, naming the argument and what came."""
    with pytest.raises(ValueError) as caught:
        shapes_of(operator, inputs, state, ids, **options)
    message = str(caught.value)
    assert argument in message, message
    assert came in message, message


@operators
def test_options_without_an_object_are_refused(operator):
    inputs = small(operator).inputs
    raises(
        operator, inputs, "implementation", "abacus", implementation="abacus"
    )
    raises(operator, inputs, "implementation", implementation=["abacus", "xla"])
    raises(operator, inputs, "exchange", "all_gather", exchange="all_gather")
    raises(operator, inputs, "form", "spiral", form="spiral")
    raises(operator, inputs, "axis_name", "nowhere", axis_name="nowhere")
    if not operator.forms:
        raises(operator, inputs, "form", "chunk", form="chunk")
        raises(operator, inputs, "chunk_size", "16", chunk_size=16)
        return
    for form in set(operator.forms) - {"chunk"}:
        options = {"form": form, "chunk_size": 16}
        raises(operator, inputs, "chunk_size", "16", **options)
    for size in (0, -4, 2.5):
        raises(operator, inputs, "chunk_size", str(size), chunk_size=size)


@operators
def test_axis_name_with_what_it_cannot_do(operator):
    inputs = small(operator, 4).inputs
    mesh = jax.make_mesh(
        (2,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:2],
    )
    time = jax.sharding.PartitionSpec(None, "seq")
    timed = {n: inputs[n] for n in operator.timed(inputs)}
    fixed = {n: inputs[n] for n in operator.parameters if n in inputs}

    def refused(argument, came, **options):
        def op(timed):
            return runner.call(operator, timed | fixed, None, None, **options)

        mapped = jax.shard_map(
            lambda x: op(x)[0], mesh=mesh, in_specs=time, out_specs=time
        )
        with pytest.raises(ValueError) as caught:
            jax.eval_shape(mapped, timed)
        assert argument in str(caught.value)
        assert came in str(caught.value)

    refused("exchange", "pigeon", axis_name="seq", exchange="pigeon")
    if "parallel" in operator.forms:
        refused("parallel", "seq", axis_name="seq", form="parallel")


@operators
def test_wrong_shapes_and_dtypes_are_refused(operator):
    problem = small(operator)
    inputs = problem.inputs
    for name, x in inputs.items():
        deeper = x[..., None]
        raises(operator, inputs | {name: deeper}, name, _digits(deeper))
        whole = np.ones(x.shape, np.int32)
        raises(operator, inputs | {name: whole}, name, "int32")
        if name in operator.timed(inputs) and name != operator.timed(inputs)[0]:
            short = x[:, :-1]
            raises(operator, inputs | {name: short}, name, _digits(short))
    for label, (change, argument, came) in operator.faults.items():
        with pytest.raises(ValueError) as caught:
            shapes_of(operator, change(dict(inputs)))
        message = str(caught.value)
        assert argument in message and came in message, (label, message)


@operators
def test_wrong_states_and_segment_ids_are_refused(operator):
    problem = small(operator)
    inputs, state = problem.inputs, problem.state
    more_rows = jax.tree.map(lambda x: np.concatenate([x, x]), state)
    raises(operator, inputs, "initial_state", "4", state=more_rows)
    ids = problem.segment_ids
    raises(operator, inputs, "segment_ids", "2, 4", ids=ids[:, :-1])
    raises(operator, inputs, "segment_ids", "2, 5, 1", ids=ids[..., None])
    floats = ids.astype(np.float32)
    raises(operator, inputs, "segment_ids", "float32", ids=floats)


def _digits(x):
    return ", ".join(str(n) for n in x.shape)
