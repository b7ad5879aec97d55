"""The rivals of one operator, and the numbers of each."""

import difflib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import _cases
from benchmarks import _timing

BASELINE = "baseline_scan"
DIRECTIONS = ("forward", "both")
DTYPES = ("float32", "bfloat16", "float16")
GROWTH = 4


class Settings(NamedTuple):
    """What to measure; the flags of the same names say what each is."""

    ops: tuple[str, ...] = tuple(_cases.CASES)
    forms: tuple[str, ...] = _cases.FORMS
    chunk_sizes: tuple[int, ...] = ()
    sizes: _cases.Sizes = _cases.Sizes()
    dtype: str = "float32"
    repeats: int = 5
    baseline: bool = True
    growth: bool = True


class Row(NamedTuple):
    """One contender in one direction.

    Attributes:
      operator: a name of the case table.
      form: "baseline_scan", a form, or "only" where the operator has just one.
      chunk_size: None where the operator chooses, or has no chunks.
      direction: "forward" or "both".
      milliseconds: median time of a call.
      quartiles: the middle half of the times lies between these.
      times_faster: the baseline's median over this one; None without it.
      temporary_bytes: peak scratch memory of a call.
      growth: temporary_bytes at GROWTH times the length, over it; None where
        not asked for or nothing is used.
      compile_seconds: from the lowered program to the executable.
    """

    operator: str
    form: str
    chunk_size: int | None
    direction: str
    milliseconds: float
    quartiles: tuple[float, float]
    times_faster: float | None
    temporary_bytes: int
    growth: float | None
    compile_seconds: float


def contenders(
    case: _cases.Case, settings: Settings
) -> dict[tuple[str, int | None], Any]:
    """Functions of the inputs that return y, by (form, chunk size)."""
    found: dict[tuple[str, int | None], Any] = {}
    if settings.baseline and case.baseline is not None:
        found[BASELINE, None] = case.baseline
    if not case.forms:
        found["only", None] = lambda *inputs: case.run(*inputs)[0]
    for form in settings.forms:
        if form not in case.forms:
            continue
        sizes = settings.chunk_sizes if form == "chunk" else ()
        for size in sizes or (None,):
            found[form, size] = _contender(case.run, form, size)
    return found


def _contender(run, form, chunk_size):
    def call(*inputs):
        return run(*inputs, form=form, chunk_size=chunk_size)[0]

    return call


def with_gradients(function):
    """From y = f(inputs) to (cotangent, inputs) -> y and all gradients."""

    def call(cotangent, *inputs):
        y, pull = jax.vjp(function, *inputs)
        return y, pull(cotangent)

    return call


def measure(name: str, settings: Settings) -> list[Row]:
    """All rows of one operator.

    Args:
      name: a name of the case table.
      settings: what to measure.
    """
    case = _cases.CASES[name]
    dtype = jnp.dtype(settings.dtype)
    inputs = case.inputs(jax.random.key(0), settings.sizes, dtype)
    longer = settings.sizes._replace(length=GROWTH * settings.sizes.length)
    long_inputs = jax.eval_shape(
        lambda key: case.inputs(key, longer, dtype), jax.random.key(0)
    )
    rows = []
    rivals = contenders(case, settings)
    for direction in DIRECTIONS:
        programs, calls, growths = [], [], []
        for function in rivals.values():
            here, there = inputs, long_inputs
            if direction == "both":
                y = jax.eval_shape(function, *inputs)
                long_y = jax.eval_shape(function, *long_inputs)
                key = jax.random.key(1)
                cotangent = jax.random.normal(key, y.shape).astype(y.dtype)
                here, there = (cotangent, *inputs), (long_y, *long_inputs)
                function = with_gradients(function)
            program = _timing.compile_program(function, *here)
            programs.append(program)
            calls.append(lambda call=program.call, here=here: call(*here))
            growth = None
            if settings.growth and program.temporary_bytes:
                long = _timing.compile_program(function, *there)
                growth = long.temporary_bytes / program.temporary_bytes
            growths.append(growth)
        timings = _timing.interleave(calls, settings.repeats)
        reference = dict(zip(rivals, timings, strict=True)).get(
            (BASELINE, None)
        )
        for (form, size), program, timing, growth in zip(
            rivals, programs, timings, growths, strict=True
        ):
            rows.append(
                Row(
                    name,
                    form,
                    size,
                    direction,
                    timing.median,
                    (timing.lower, timing.upper),
                    reference and reference.median / timing.median,
                    program.temporary_bytes,
                    growth,
                    program.compile_seconds,
                )
            )
    return rows


def check(settings: Settings) -> None:
    """Refuses settings that cannot be measured, before anything is compiled.

    Raises:
      ValueError: names the field, what came and what is accepted.
    """
    for field, names, known in (
        ("ops", settings.ops, tuple(_cases.CASES)),
        ("forms", settings.forms, _cases.FORMS),
        ("dtype", (settings.dtype,), DTYPES),
    ):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{field} must be among {', '.join(known)}, got"
                    f" {name!r}{hint}"
                )
    for field, numbers in (
        ("chunk_sizes", settings.chunk_sizes),
        ("repeats", (settings.repeats,)),
        *((name, (size,)) for name, size in settings.sizes._asdict().items()),
    ):
        if any(number < 1 for number in numbers):
            raise ValueError(f"{field} must be at least 1, got {numbers}")
    if settings.chunk_sizes and "chunk" not in settings.forms:
        raise ValueError(
            "chunk_sizes act on the form chunk, which is not among forms"
            f" {', '.join(settings.forms)}"
        )
