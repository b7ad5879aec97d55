"""Time sharded over devices gives what one device gives.

104 tokens: 52, 26 or 13 a device, no multiple of the chunk size and, on eight
devices, less than one; documents and convolution windows cross the borders, and
rows 4, 5 and 7 leave whole devices without a real token.
Which meshes and exchanges: see `meshes`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import meshes
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

P = jax.sharding.PartitionSpec
LENGTH = 104


def mesh_of(devices):
    return jax.make_mesh(
        (devices,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def time_specs(operator, inputs):
    """Inputs with a time axis are sharded along it, others replicated.

    So are those whose time axis has one entry: a gate that is one parameter.
    """

    def spec_of(name, x):
        if name in operator.parameters or x.shape[1] == 1:
            return P()
        return P(None, "seq")

    return {name: spec_of(name, x) for name, x in inputs.items()}


@functools.cache
def sharded(operator, devices, check_vma, inside, packed, options, specs):
    """Values and all gradients, taken outside or inside of shard_map."""
    mesh = mesh_of(devices)
    specs = dict(specs)

    def op(inputs, state, segment_ids):
        length = LENGTH // devices
        inputs = {
            name: jnp.broadcast_to(x, (x.shape[0], length, *x.shape[2:]))
            if name not in operator.parameters and x.shape[1] == 1
            else x
            for name, x in inputs.items()
        }
        return runner.outputs(
            operator,
            inputs,
            state,
            segment_ids,
            axis_name="seq",
            **dict(options),
        )

    time = P(None, "seq")
    ids = time if packed else None

    def outside(inputs, state, segment_ids, ct_y, ct_state):
        mapped = jax.shard_map(
            op,
            mesh=mesh,
            in_specs=(specs, P(), ids),
            out_specs=((time, P()), P()),
            check_vma=check_vma,
        )
        return runner.pull(
            lambda i, s: mapped(i, s, segment_ids),
            inputs,
            state,
            ct_y,
            ct_state,
        )

    def local(inputs, state, segment_ids, ct_y, ct_state):
        """As a training step does it: the loss and its gradient inside."""

        floats, join = runner.split_state(state)

        def loss(inputs, floats):
            (y, leaves), raw = op(inputs, join(floats), segment_ids)
            total = jax.lax.psum(jnp.sum(y * ct_y).real, "seq")
            for x, ct in zip(leaves, ct_state, strict=True):
                total += jnp.sum(x * ct).real
            return total, (y, leaves, raw)

        (_, aux), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            inputs, floats
        )
        return *aux, *grads

    def in_a_step(*args):
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, P(), ids, time, P()),
            out_specs=(time, P(), P(), specs, P()),
            check_vma=check_vma,
        )(*args)

    return jax.jit(in_a_step if inside else outside)


def run(operator, problem, devices, *, check_vma, inside=False, **options):
    specs = time_specs(operator, problem.inputs)
    function = sharded(
        operator,
        devices,
        check_vma,
        inside,
        problem.segment_ids is not None,
        tuple(sorted((k, v) for k, v in options.items() if v is not None)),
        tuple(specs.items()),
    )
    args = (problem.inputs, problem.state, problem.segment_ids)
    args += (problem.ct_y, problem.ct_state)
    return spec.Result(*jax.device_get(function(*args)))


def sharded_cases():
    for operator in table.OPERATORS:
        default = meshes.by_default(operator)
        for options in (*meshes.standard(operator), *meshes.cross(operator)):
            yield pytest.param(
                operator,
                options,
                id=f"{operator.name}-{meshes.short(options)}",
                marks=() if options in default else pytest.mark.full,
            )


@pytest.mark.parametrize("operator,options", list(sharded_cases()))
def test_sharded_equals_oracle(operator, options):
    options = dict(options)
    packed = options.pop("packed", True)
    problem, expected = _problem(operator, packed)
    spec.check(run(operator, problem, **options), expected, 1e-5)


@functools.cache
def _problem(operator, packed=True):
    draw = cases.mixed_segments if packed else cases.one_segment
    ids = draw(spec.BATCH, LENGTH)
    problem = cases.draw(operator, spec.BATCH, LENGTH, ids)
    expected = spec.expect(operator, problem)
    return problem if packed else problem.replace(segment_ids=None), expected


@pytest.mark.parametrize(
    "operator",
    [o for o in table.OPERATORS if o.replicated],
    ids=lambda o: o.name,
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_replicated_gates(operator, check_vma):
    """A gate that is one value for all tokens collects from all devices."""
    problem, _ = _problem(operator)
    rng = cases.rng_for("replicated", operator.name)
    inputs = operator.replicated(rng, spec.BATCH, LENGTH)
    steps = operator.steps
    full = {
        n: x
        if n in operator.parameters
        else np.broadcast_to(
            x, (x.shape[0], LENGTH * steps.get(n, 1), *x.shape[2:])
        )
        for n, x in inputs.items()
    }
    expected = spec.expect(operator, problem.replace(inputs=full))
    for name, x in inputs.items():
        if x.shape != full[name].shape:
            total = expected.grads[name].sum(1, keepdims=True)
            expected.grads[name] = total
    options = meshes.configured(
        operator, meshes.CONFIGURATIONS[2] | {"exchange": "ring"}
    )
    options["check_vma"] = check_vma
    result = run(operator, problem.replace(inputs=inputs), **options)
    spec.check(result, expected, 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda o: o.name)
def test_a_batch_of_no_rows(operator):
    problem, _ = cases.board(operator, 16)
    timed = operator.timed(problem.inputs)
    inputs = {n: x[:0] if n in timed else x for n, x in problem.inputs.items()}
    state = jax.tree.map(lambda x: x[:0], operator.zero_state(spec.BATCH))
    time = P(None, "seq")

    def outputs(inputs, ids, exchange):
        options = meshes.configured(operator, {"exchange": exchange})
        if exchange is None:
            del options["exchange"]

        def op(inputs, ids):
            call = runner.outputs(
                operator, inputs, state, ids, axis_name="seq", **options
            )
            return call[0][0]

        return jax.shard_map(
            op,
            mesh=mesh_of(2),
            in_specs=(
                time_specs(operator, inputs),
                None if ids is None else time,
            ),
            out_specs=time,
        )(inputs, ids)

    for exchange in operator.exchanges:
        for ids in (None, np.zeros((0, 16), np.int32)):
            run = functools.partial(outputs, ids=ids, exchange=exchange)
            y = jax.eval_shape(lambda i, run=run: jax.vjp(run, i)[0], inputs)
            assert y.shape[0] == 0
