"""Every form, chunk size and length gives what the oracle gives."""

import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

BOUND = {"recurrent": 2e-6, "chunk": 1e-5, "parallel": 1e-5, None: 1e-5}


def pairs(values, few, rare=()):
    """(operator, value) for the values that the operator has.

    Where another row stands for the core, the default run has `few` of them;
    it has no `rare` ones.
    """
    return [
        pytest.param(
            operator,
            value,
            id=f"{operator.name}-{value}",
            marks=[pytest.mark.full]
            if value in rare
            or value in operator.only_in_full(values(operator), few)
            else [],
        )
        for operator in table.OPERATORS
        for value in values(operator)
    ]


def forms_of(operator):
    return operator.forms or (None,)


@pytest.mark.parametrize(
    "operator,length",
    pairs(lambda o: o.lengths, spec.FEW_LENGTHS, rare=(130,)),
)
def test_any_length(operator, length):
    problem, expected = cases.board(operator, length)
    result = runner.run(
        operator,
        problem,
        gradients=length in spec.GRADIENT_LENGTHS,
        **runner.length_options(operator),
    )
    spec.check(result, expected, 1e-5, f"T = {length}")


@pytest.mark.parametrize(
    "operator,chunk_size",
    pairs(
        lambda o: o.chunk_sizes if "chunk" in o.forms else (),
        spec.FEW_CHUNK_SIZES,
    ),
)
def test_any_chunk_size(operator, chunk_size):
    problem, expected = cases.board(operator)
    result = runner.run(operator, problem, form="chunk", chunk_size=chunk_size)
    spec.check(result, expected, 1e-5, f"chunk size {chunk_size}")


@pytest.mark.parametrize("operator,form", pairs(forms_of, few=("chunk", None)))
def test_float64_equals_oracle(operator, form):
    _, expected = cases.board(operator)
    result = runner.run_board(operator, form, wide=True)
    assert result.y.dtype in (np.float64, np.complex128)
    spec.check(result, expected, 1e-10, form)


@pytest.mark.parametrize(
    "operator,form", pairs(forms_of, few=("recurrent", "chunk", None))
)
def test_one_token(operator, form):
    problem, expected = cases.board(operator, 1)
    options = (
        runner.length_options(operator)
        if form == operator.default_form()
        else runner.options_of(operator, form)
    )
    result = runner.run(operator, problem, **options)
    spec.check(result, expected, BOUND[form], form)


@pytest.mark.parametrize(
    "operator,form",
    # Others have the gradients of autodiff.
    pairs(forms_of, few=("chunk", None), rare=("recurrent", "parallel")),
)
def test_gradient_equals_finite_difference(operator, form):
    """The operator's own values, moved along one direction in float64.

    Taken from the program that gives the gradients too: it is there already.
    """
    problem = cases.cast(cases.board(operator)[0], np.float64)
    options = runner.board_options(operator, form)
    grads = runner.run_board(operator, form, wide=True).grads
    rng = cases.rng_for("difference", operator.name)
    direction = {
        name: rng.normal(size=x.shape) * np.abs(x)
        for name, x in problem.inputs.items()
    }

    def loss(h):
        moved = {n: x + h * direction[n] for n, x in problem.inputs.items()}
        out = runner.run(
            operator, problem.replace(inputs=moved), wide=True, **options
        )
        return spec.loss(out, problem)

    h = 1e-4
    near = (loss(h) - loss(-h)) / (2 * h)
    far = (loss(2 * h) - loss(-2 * h)) / (4 * h)
    slope = (4 * near - far) / 3  # the h² term cancels
    parts = [np.sum(grads[n] * direction[n]).real for n in direction]
    assert abs(slope - sum(parts)) <= 1e-7 * (1 + np.abs(parts).max())


def sets_of_forms():
    """(operator, forms); the recurrence tells what the others may err."""
    for operator in table.OPERATORS:
        default = operator.default_forms()
        yield pytest.param(operator, default, id=operator.name)
        rest = set(operator.forms) - set(default)
        if rest:
            yield pytest.param(
                operator,
                ("recurrent", *rest),
                id=f"{operator.name}-{'-'.join(rest)}",
                marks=pytest.mark.full,
            )


@pytest.mark.parametrize("operator,forms", list(sets_of_forms()))
def test_errors_stay_within_the_table(operator, forms):
    """Ordinary and hard inputs, one program a form: never NaN, never far off.

    A form may err ten times as much as the step-by-step recurrence errs on the
    same inputs: some problems are ill-conditioned.  Gradients have ten times
    the bound of values.
    """
    rng = cases.rng_for("hard", operator.name)
    plain = cases.plain_board(operator)
    hard = operator.hard(rng, plain.inputs)
    problems = {"ordinary": plain} | {
        label: plain.replace(inputs=inputs) for label, inputs in hard.items()
    }
    for label, problem in problems.items():
        expected = spec.expect(operator, problem)
        own = {}
        for form in forms:
            result = runner.run(
                operator, problem, **runner.board_options(operator, form)
            )
            errors = spec.errors(result, expected)
            if form == "recurrent":
                own = errors
            base = 2e-6 if label == "ordinary" else 2e-5
            for name, error in errors.items():
                bound = max(base, 10 * own.get(name, 0.0))
                bound *= 10 if name.startswith("grad") else 1
                assert error <= bound, (label, form, name, error, bound)
            for name, x in result.parts().items():
                assert np.isfinite(x).all(), (label, form, name)
