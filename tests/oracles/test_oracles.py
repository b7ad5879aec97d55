"""The oracles agree with golden vectors, and their gradients with differences.

Everything here is numpy in float64.
"""

import numpy as np
import pytest

from tests.conformance import cases
from tests.conformance import golden
from tests.conformance import spec
from tests.conformance import table
from tests.conformance.rows import linear
from tests.oracles import tape

GOLDEN_CASES = [
    pytest.param(case, id=f"{operator.name}-{case.name}")
    for operator in table.OPERATORS
    for case in golden.load(operator)
]


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_oracle_equals_golden(case):
    case.check(spec.expect(case.operator, case.problem), "float64")


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda o: o.name)
def test_oracle_gradient_equals_finite_difference(operator):
    length = 17
    ids = cases.mixed_segments(spec.BATCH, length)
    problem = cases.draw(operator, spec.BATCH, length, ids)
    problem = cases.cast(problem, np.float64)
    grads = spec.expect(operator, problem).grads
    rng = cases.rng_for("difference", operator.name)
    for name, x in problem.inputs.items():
        direction = rng.normal(size=x.shape) * np.abs(x)

        def loss(h, name=name, x=x, direction=direction):
            moved = problem.inputs | {name: x + h * direction}
            out = spec.expect(
                operator, problem.replace(inputs=moved), gradients=False
            )
            parts = [(out.y, problem.ct_y)]
            parts += zip(out.state, problem.ct_state, strict=True)
            return sum(np.sum(a * b) for a, b in parts)

        h = 1e-4
        near = (loss(h) - loss(-h)) / (2 * h)
        far = (loss(2 * h) - loss(-2 * h)) / (4 * h)
        slope = (4 * near - far) / 3
        expected = np.sum(grads[name] * direction)
        assert abs(slope - expected) <= 1e-8 * (1 + abs(expected)), name


def test_tape_follows_the_complex_convention_of_transposition():
    z = tape.Variable(np.array([1.0 + 2.0j, -0.5j]))
    w = tape.Variable(np.array([0.3 - 1.0j, 2.0 + 0.0j]))
    y = tape.real(tape.exp(z) * w)
    (gz, gw) = tape.gradients([y], [np.array([1.0, 2.0])], [z, w])
    ct = np.array([1.0, 2.0])
    np.testing.assert_allclose(gz, ct * np.exp(z.value) * w.value)
    np.testing.assert_allclose(gw, ct * np.exp(z.value))


def test_padding_and_resets_are_exact_in_the_oracle():
    operator = linear.GATED
    ids = cases.mixed_segments(spec.BATCH, 40)
    problem = cases.draw(operator, spec.BATCH, 40, ids)
    out = spec.expect(operator, problem)
    assert not out.y[ids < 0].any()
    for name in operator.timed(problem.inputs):
        assert not out.grads[name][ids < 0].any()
    empty = (ids < 0).all(1)
    assert empty.any()
    assert spec.equal_bits(
        out.state[0][empty], problem.state[empty].astype(np.float64)
    )
