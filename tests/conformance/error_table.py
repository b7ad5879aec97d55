"""Prints the error of every operator, form and case against the oracle.

    python -m tests.conformance.error_table [row of the table ...]

Errors are ||a - b|| / (||b|| + 1e-6 sqrt(size)), norms in float64, the largest
over outputs, over leaves of the final state and over gradients.  Columns: the
mixed board (documents, padding, an initial state, T = 130) in float32 and
float64, each hard case of the table, the golden files, T = 2048, and bfloat16
inputs, whose results are rounded to bfloat16.  All rows take a few minutes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from tests.conformance import cases
from tests.conformance import golden
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

LONG = 2048


def worst(errors) -> dict[str, float]:
    """The largest error among y, state and gradients."""
    kinds = {"y": 0.0, "state": 0.0, "grad": 0.0}
    for name, value in errors.items():
        kind = name if name == "y" else name.split("[")[0].split(" ")[0]
        kinds[kind] = max(kinds[kind], value) if value == value else value
    return kinds


def measure(operator, form):
    """Yields (case, errors) of one form."""
    options = runner.board_options(operator, form)
    problem, expected = cases.board(operator)
    result = runner.run(operator, problem, **options)
    yield "board", spec.errors(result, expected)
    result = runner.run(operator, problem, wide=True, **options)
    yield "board, float64", spec.errors(result, expected)
    plain = cases.plain_board(operator)
    rng = cases.rng_for("hard", operator.name)
    for label, inputs in operator.hard(rng, plain.inputs).items():
        hard = plain.replace(inputs=inputs)
        result = runner.run(operator, hard, **options)
        yield label, spec.errors(result, spec.expect(operator, hard))
    half = _rounded(plain)
    exact = cases.cast(half, np.float32)
    result = runner.run(operator, half, **options)
    yield "bfloat16", spec.errors(result, spec.expect(operator, exact))
    if form in operator.golden_forms():
        yield from _golden(operator, form)
    if LONG in operator.table_lengths and form != "parallel":
        ids = cases.mixed_segments(spec.BATCH, LONG)
        problem = cases.draw(operator, spec.BATCH, LONG, ids)
        result = runner.run(operator, problem, **options)
        yield f"T = {LONG}", spec.errors(result, spec.expect(operator, problem))


def _rounded(problem):
    """Inputs in bfloat16, state and cotangents as they were."""
    inputs = cases.cast(problem, jnp.bfloat16).inputs
    ct_y = problem.ct_y.astype(jnp.bfloat16).astype(np.float32)
    return problem.replace(inputs=inputs, ct_y=ct_y)


def _golden(operator, form):
    by_program = {}
    for case in golden.load(operator):
        by_program.setdefault(case.operator, []).append(case)
    for group in by_program.values():
        options = runner.options_of(operator, form)
        results = golden.run(group, **options)
        for case, result in zip(group, results, strict=True):
            yield case.name, case.errors(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rows", nargs="*", help="rows of the table; all if none"
    )
    rows = parser.parse_args().rows
    known = [operator.name for operator in table.OPERATORS]
    for row in set(rows) - set(known):
        parser.error(f"{row!r} is no row; there are {', '.join(known)}")
    print(f"jax {jax.__version__} on {jax.default_backend()}")
    print("| operator | form | case | y | state | gradients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for operator in table.OPERATORS:
        if rows and operator.name not in rows:
            continue
        for form in operator.forms or (None,):
            for case, errors in measure(operator, form):
                values = " | ".join(f"{v:.0e}" for v in worst(errors).values())
                print(
                    f"| {operator.name} | {form or '-'} | {case} | {values} |"
                )


if __name__ == "__main__":
    main()
