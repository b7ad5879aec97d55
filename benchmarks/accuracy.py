r"""Errors of every operator on ordinary and hard inputs, against float64.

    python -m benchmarks.accuracy                          # every operator
    python -m benchmarks.accuracy --ops=retention,ssd --write=/tmp/table.md

The operators, hard cases and step-by-step float64 oracles are those of the
conformance suite (T = 130, and T = 2048 where the oracle has the patience).
Errors are ||a - b|| / (||b|| + 1e-6 sqrt(size)), norms in float64: of the
output, and the worst among the gradients of all inputs and of the initial
state. float32 columns: inputs in float32. bfloat16 columns: inputs rounded to
bfloat16 beforehand, for the oracle too; what is left is the rounding of the
results (2e-3) and what the operator adds. All rows take several minutes.
"""

from collections.abc import Iterator, Sequence
import pathlib

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from tests.conformance import cases
from tests.conformance import runner
from tests.conformance import spec
from tests.conformance import table

LONG = 2048
FORMS = ("recurrent", "chunk")
_HEADER = (
    "| operator | case | form | float32 output | float32 gradients |"
    " bfloat16 output | bfloat16 gradients |"
)


def worst(errors: dict[str, float]) -> tuple[float, float]:
    """The error of y, and the largest among the gradients (NaN wins)."""
    gradients = [e for name, e in errors.items() if name.startswith("grad")]
    return errors["y"], float(np.max(gradients)) if gradients else 0.0


def problems(operator: spec.Operator) -> Iterator[tuple[str, spec.Problem]]:
    """The cases of an operator by name."""
    plain = cases.plain_board(operator)
    yield "packed, padded", cases.board(operator)[0]
    yield "ordinary", plain
    rng = cases.rng_for("hard", operator.name)
    for label, inputs in operator.hard(rng, plain.inputs).items():
        yield label, plain.replace(inputs=inputs)
    if LONG in operator.table_lengths:
        ids = cases.mixed_segments(2, LONG)
        yield f"T = {LONG}", cases.draw(operator, 2, LONG, ids)


def rounded(problem: spec.Problem) -> spec.Problem:
    """Inputs and cotangent rounded to bfloat16, the state as it was."""
    inputs = cases.cast(problem, jnp.bfloat16).inputs
    ct_y = problem.ct_y.astype(jnp.bfloat16).astype(np.float32)
    return problem.replace(inputs=inputs, ct_y=ct_y)


def rows(operator: spec.Operator) -> Iterator[str]:
    """The table's lines of one operator."""
    forms = [f for f in FORMS if f in operator.forms] or [None]
    for label, problem in problems(operator):
        inputs = [(problem, spec.expect(operator, problem))]
        if not operator.complex_inputs:
            half = rounded(problem)
            exact = cases.cast(half, np.float32)
            inputs.append((half, spec.expect(operator, exact)))
        for form in forms:
            options = runner.board_options(operator, form)
            cells = []
            for given, expected in inputs:
                result = runner.run(operator, given, **options)
                cells += worst(spec.errors(result, expected))
            values = [f"{x:.0e}" for x in cells]
            values += ["-"] * (4 - len(values))
            yield (
                f"| {operator.name} | {label} | {form or '-'} | "
                + " | ".join(values)
                + " |"
            )


def page(operators: Sequence[spec.Operator]) -> Iterator[str]:
    """The whole page, line by line as it is measured."""
    yield "# Errors against float64"
    yield ""
    yield (
        f"`python -m benchmarks.accuracy`, jax {jax.__version__} on"
        f" {jax.default_backend()}; what the columns mean stands in its"
        " docstring."
    )
    yield ""
    yield _HEADER
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for operator in operators:
        yield from rows(operator)


def main(argv: Sequence[str]) -> None:
    """Prints the page and writes it where --write says."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    known = {operator.name: operator for operator in table.OPERATORS}
    unknown = sorted(set(flags.FLAGS.ops) - set(known))
    if unknown:
        raise app.UsageError(
            f"--ops names {', '.join(unknown)}; there are {', '.join(known)}"
        )
    chosen = [known[name] for name in flags.FLAGS.ops or known]
    lines = []
    for line in page(chosen):
        print(line, flush=True)
        lines.append(line)
    if flags.FLAGS.write:
        pathlib.Path(flags.FLAGS.write).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("ops", [], "Rows of the conformance table; empty: all.")
    flags.DEFINE_string("write", None, "Where to write the table as markdown.")
    app.run(main)
