"""Documents do not see each other, nor the future, to the last bit."""

import jax
import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

FORMS = pytest.mark.parametrize(
    "operator,form",
    [
        pytest.param(
            operator,
            form,
            id=f"{operator.name}-{form}",
            marks=() if form in operator.default_forms() else pytest.mark.full,
        )
        for operator in table.OPERATORS
        for form in operator.forms or (None,)
    ],
)


def run(operator, problem, form):
    """The programs that the tests of hard numbers compiled already."""
    options = runner.board_options(operator, form)
    return runner.run(operator, problem, **options)


def packed(operator):
    """Three documents a row, with some padding; borders off the chunks'."""
    problem = cases.plain_board(operator)
    ids = np.zeros_like(problem.segment_ids)
    for row in range(spec.BATCH):
        ids[row, 17 + 3 * row :] = 1
        ids[row, 70 + 5 * row :] = 2
    ids[1, 10:15] = -1
    ids[2, 60:90] = -1
    ids[3, ::7] = -1
    ids[4, 120:] = -1
    return problem.replace(segment_ids=ids)


def assert_same_tokens(operator, problem, before, after, keep):
    """Outputs and gradients agree bit for bit where `keep` [B, T] holds."""
    assert spec.equal_bits(before.y[keep], after.y[keep]), "y"
    for name in operator.timed(problem.inputs):
        n = operator.steps.get(name, 1)
        there = np.repeat(keep, n, 1)
        a, b = before.grads[name][there], after.grads[name][there]
        assert spec.equal_bits(a, b), f"gradient of {name}"


@FORMS
def test_a_document_does_not_move_its_neighbours(operator, form):
    """In every row another of the three documents changes."""
    problem = packed(operator)
    before = run(operator, problem, form)
    rng = cases.rng_for("isolation", operator.name)
    rows = np.arange(spec.BATCH)
    document = rows % 3
    where = problem.segment_ids == document[:, None]
    changed = cases.disturb(operator, problem, where, rng)
    first = rows[document == 0]  # the initial state belongs to document 0
    fresh = operator.make_state(rng, spec.BATCH)
    fresh = cases.rows_from(fresh, problem.state, first)
    after = run(operator, changed.replace(state=fresh), form)
    assert_same_tokens(operator, problem, before, after, ~where)
    for row in rows:
        assert not spec.equal_bits(before.y[row], after.y[row])
    for a, b in zip(before.state_grads, after.state_grads, strict=True):
        there = document != 0
        assert spec.equal_bits(a[there], b[there]), "initial state"
    if operator.forgets:
        for a, b in zip(before.state, after.state, strict=True):
            there = document != 2
            assert spec.equal_bits(a[there], b[there]), "final state"


@FORMS
def test_the_future_does_not_move_the_past(operator, form):
    problem = cases.plain_board(operator)
    t = 61
    past = np.zeros(problem.segment_ids.shape, bool)
    past[:, :t] = True
    ct_y = np.array(problem.ct_y)
    ct_y[~past] = 0
    problem = problem.replace(
        ct_y=ct_y, ct_state=tuple(np.zeros_like(c) for c in problem.ct_state)
    )
    before = run(operator, problem, form)
    rng = cases.rng_for("causality", operator.name)
    rows = np.arange(spec.BATCH)[:, None]
    where = np.arange(spec.LENGTH) >= t + rows
    changed = cases.disturb(operator, problem, where, rng)
    after = run(operator, changed, form)
    assert_same_tokens(operator, problem, before, after, past)
    for name in operator.timed(problem.inputs):
        n = operator.steps.get(name, 1)
        assert not after.grads[name][np.repeat(~past, n, 1)].any(), name
    for name in operator.parameters:
        assert spec.equal_bits(before.grads[name], after.grads[name]), name
    for a, b in zip(before.state_grads, after.state_grads, strict=True):
        assert spec.equal_bits(a, b)


@FORMS
def test_padding_has_no_output_and_no_gradient(operator, form):
    """Nor does what stands in it matter, be it NaN, wherever it stands."""
    problem = cases.board(operator)[0]
    before = runner.run_board(operator, form)
    padding = problem.segment_ids < 0
    assert not before.y[padding].any()
    rng = cases.rng_for("padding", operator.name)
    changed = cases.disturb(operator, problem, padding, rng)
    odd = padding & (np.arange(spec.LENGTH) % 2 == 1)
    for name in operator.timed(problem.inputs):
        there = np.repeat(odd, operator.steps.get(name, 1), 1)
        changed.inputs[name][there] = np.nan
    after = run(operator, changed, form)
    for name in operator.timed(problem.inputs):
        there = np.repeat(padding, operator.steps.get(name, 1), 1)
        assert not before.grads[name][there].any(), name
        assert not after.grads[name][there].any(), name
    assert_same_tokens(operator, problem, before, after, ~padding)
    for name in operator.parameters:
        assert spec.equal_bits(before.grads[name], after.grads[name]), name
    for a, b in zip(before.state, after.state, strict=True):
        assert spec.equal_bits(a, b), "final state"
    empty = padding.all(1)
    assert empty.any()
    start = jax.tree.leaves(problem.state)
    for a, b in zip(jax.tree.leaves(before.raw_state), start, strict=True):
        assert np.array_equal(a[empty], np.asarray(b)[empty]), "empty row"


@FORMS
def test_packed_equals_separate(operator, form):
    """One document of each row alone, with padding behind it."""
    problem = packed(operator)
    problem = problem.replace(state=operator.zero_state(spec.BATCH))
    if not operator.forgets:  # its final state holds tokens of all documents
        zeros = tuple(np.zeros_like(c) for c in problem.ct_state)
        problem = problem.replace(ct_state=zeros)
    together = run(operator, problem, form)
    rows = np.arange(spec.BATCH)
    document = (rows + 1) % 3
    alone = run(operator, _alone(operator, problem, document), form)
    for row in rows:
        there = np.flatnonzero(problem.segment_ids[row] == document[row])
        n = len(there)
        error = spec.error(alone.y[row, :n], together.y[row, there])
        assert error <= 1e-5, f"y of row {row}: {error:.1e}"
        for name in operator.timed(problem.inputs):
            k = operator.steps.get(name, 1)
            index = (there[:, None] * k + np.arange(k)).ravel()
            got = alone.grads[name][row, : n * k]
            error = spec.error(got, together.grads[name][row, index])
            assert error <= 2e-5, f"{name}, row {row}: {error:.1e}"
    if operator.forgets:
        last = document == 2
        for a, b in zip(alone.state, together.state, strict=True):
            assert spec.error(a[last], b[last]) <= 1e-5, "final state"


def _alone(operator, problem, document):
    """The tokens of a row's document moved to the front, padding behind."""
    mine = problem.segment_ids == document[:, None]
    order = np.argsort(~mine, 1, kind="stable")
    rows = np.arange(spec.BATCH)[:, None]
    inputs = dict(problem.inputs)
    for name in operator.timed(inputs):
        k = operator.steps.get(name, 1)
        steps = (order[:, :, None] * k + np.arange(k)).reshape(spec.BATCH, -1)
        inputs[name] = inputs[name][rows, steps]
    ids = np.where(mine, 0, -1)[rows, order].astype(np.int32)
    # only the last document carries a cotangent of the final state
    ct_state = tuple(np.array(c) for c in problem.ct_state)
    for c in ct_state:
        c[document != 2] = 0
    return problem.replace(
        inputs=inputs,
        segment_ids=ids,
        ct_y=problem.ct_y[rows, order],
        ct_state=ct_state,
    )


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda o: o.name)
def test_ids_are_names(operator):
    """Only where the id changes matters, up to the largest int32."""
    problem = packed(operator)
    problem = problem.replace(state=operator.zero_state(spec.BATCH))
    form = operator.default_form()
    before = run(operator, problem, form)
    names = np.array([7, 70_001, 2**31 - 2], np.int32)
    renamed = np.where(
        problem.segment_ids < 0, -1, names[problem.segment_ids]
    ).astype(np.int32)
    after = run(operator, problem.replace(segment_ids=renamed), form)
    for name, part in before.parts().items():
        assert spec.equal_bits(part, after.parts()[name]), name
