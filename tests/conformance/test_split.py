"""Work may be cut anywhere and resumed from the state."""

import functools

import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

operators = pytest.mark.parametrize(
    "operator", table.OPERATORS, ids=lambda o: o.name
)
LENGTH = 130


@functools.cache
def problem_for(operator):
    """A problem and what the oracle says of it.

    Packed rows in which no cut below falls on a border, but some on padding.
    The caller resets the state where a document starts with a call, so a cut on
    a border is not the operator's affair.
    """
    problem = cases.plain_board(operator)
    ids = np.zeros_like(problem.segment_ids)
    ids[2:, 20:] = 1
    ids[3:, 100:] = 2
    ids[4, 60:70] = -1
    ids[5, 25:66] = -1
    ids[6, ::3] = -1
    problem = problem.replace(segment_ids=ids)
    return problem, spec.expect(operator, problem)


def run_pieces(operator, problem, pieces):
    """Outputs and last state of calls on consecutive pieces.

    Args:
        operator: a table row.
        problem: a problem.
        pieces: (length, options) of each.
    """
    state, start, outputs = problem.state, 0, []
    for length, options in pieces:
        piece = cases.cut(problem, operator, start, start + length)
        result = runner.run(
            operator,
            piece.replace(state=state),
            gradients=length in spec.GRADIENT_LENGTHS,
            **options,
        )
        outputs.append(result.y)
        state, start = result.raw_state, start + length
    return np.concatenate(outputs, 1), result.state


PIECES = ((65, 65), (127, 2, 1), (2, 1, 127), (1, 127, 2))


@pytest.mark.parametrize(
    "operator,pieces",
    [
        pytest.param(
            operator,
            pieces,
            id=f"{operator.name}-{'+'.join(map(str, pieces))}",
            marks=[pytest.mark.full]
            if pieces in operator.only_in_full(PIECES, PIECES[:1])
            else [],
        )
        for operator in table.OPERATORS
        for pieces in PIECES
    ],
)
def test_split_equals_whole(operator, pieces):
    problem, whole = problem_for(operator)
    options = runner.length_options(operator)
    y, state = run_pieces(operator, problem, [(n, options) for n in pieces])
    expected = spec.Result(whole.y, whole.state)
    spec.check(spec.Result(y, state), expected, 1e-5)


@operators
def test_prefill_then_decode(operator):
    problem = cases.cut(problem_for(operator)[0], operator, 0, 68)
    expected = spec.expect(operator, problem, gradients=False)
    prefill = runner.length_options(operator)
    step = runner.options_of(
        operator, "recurrent" if "recurrent" in operator.forms else None
    )
    pieces = [(65, prefill), (1, step), (1, step), (1, step)]
    y, state = run_pieces(operator, problem, pieces)
    spec.check(spec.Result(y, state), expected, 1e-5)


@pytest.mark.parametrize(
    "operator",
    [o for o in table.OPERATORS if o.resumable],
    ids=lambda o: o.name,
)
def test_gradients_chain_through_the_state(operator):
    """The second half's state gradient is the first half's cotangent."""
    problem, expected = problem_for(operator)
    options = runner.length_options(operator)
    half = LENGTH // 2
    first = cases.cut(problem, operator, 0, half)
    second = cases.cut(problem, operator, half, LENGTH)
    middle = runner.run(operator, first, **options).raw_state
    after = runner.run(operator, second.replace(state=middle), **options)
    before = runner.run(
        operator, first.replace(ct_state=after.state_grads), **options
    )
    grads = {
        name: before.grads[name] + after.grads[name]
        if name in operator.parameters
        else np.concatenate([before.grads[name], after.grads[name]], 1)
        for name in problem.inputs
    }
    result = spec.Result(
        np.concatenate([before.y, after.y], 1),
        after.state,
        None,
        grads,
        before.state_grads,
    )
    spec.check(result, expected, 1e-5)
