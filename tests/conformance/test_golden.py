"""Operators agree with golden vectors of other projects, within their bounds.

The oracles agree with the same vectors in float64 (tests/oracles).  Where a
core stands for a row, its recurrence meets them with --full only.
"""

import itertools

import pytest

from tests.conformance import golden
from tests.conformance import runner
from tests.conformance import table

FEW = ("chunk", None)


@pytest.mark.parametrize(
    "operator,form",
    [
        pytest.param(
            operator,
            form,
            id=f"{operator.name}-{form}",
            marks=[pytest.mark.full]
            if form in operator.only_in_full(operator.golden_forms(), FEW)
            else [],
        )
        for operator in table.OPERATORS
        for form in operator.golden_forms()
    ],
)
def test_golden(operator, form):
    kind = "recurrent" if form == "recurrent" else "chunk"
    by_program = sorted(golden.load(operator), key=lambda c: id(c.operator))
    for _, group in itertools.groupby(by_program, lambda c: id(c.operator)):
        group = list(group)
        options = runner.options_of(operator, form)
        for case, result in zip(
            group, golden.run(group, **options), strict=True
        ):
            case.check(result, kind)
