r"""Time and memory of every operator, against a plain scan over tokens.

    python -m benchmarks.operators                       # every operator
    python -m benchmarks.operators --ops=ssd --forms=chunk \
        --chunk_sizes=32,64,128 --json=/tmp/ssd.json

All rivals of an operator run interleaved in one process; a number is a median.
forward: y alone. both: y and the gradients of all inputs. x faster: the time
of baseline_scan over this one's. temporary: peak scratch memory of `both` as
the compiler counts it. growth: the same at four times the length, over it; 4
is linear. compile: seconds for `both`.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import platform
from typing import Any

from absl import app
from absl import flags
import jax

from benchmarks import _cases
from benchmarks import _measure

_HEADER = (
    f"{'operator':28}{'form':>14}{'forward ms':>12}{'x faster':>10}"
    f"{'both ms':>10}{'x faster':>10}{'temporary MiB':>15}{'growth':>8}"
    f"{'compile s':>11}"
)


def lines(rows: Sequence[_measure.Row]) -> list[str]:
    """The printed table: one line a contender, both directions beside."""
    pairs: dict[tuple, dict[str, _measure.Row]] = {}
    for row in rows:
        key = (row.operator, row.form, row.chunk_size)
        pairs.setdefault(key, {})[row.direction] = row
    printed = []
    for (operator, form, size), pair in pairs.items():
        forward, both = pair["forward"], pair["both"]
        label = form if size is None else f"{form} {size}"
        printed.append(
            f"{operator:28}{label:>14}"
            f"{forward.milliseconds:12.2f}{_number(forward.times_faster):>10}"
            f"{both.milliseconds:10.2f}{_number(both.times_faster):>10}"
            f"{both.temporary_bytes / 2**20:15.1f}{_number(both.growth):>8}"
            f"{both.compile_seconds:11.2f}"
        )
    return printed


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def about(settings: _measure.Settings) -> dict[str, Any]:
    """Where and with what the table was made, for its JSON file."""
    flat = settings._asdict()
    flat["sizes"] = settings.sizes._asdict()
    return {
        "settings": flat,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def run(
    settings: _measure.Settings, path: pathlib.Path | None = None
) -> list[_measure.Row]:
    """Measures, prints the table as it grows, writes JSON if a path is given.

    Raises:
      ValueError: a name, a form or a number that cannot be measured.
    """
    _measure.check(settings)
    facts = about(settings)
    shape = " ".join(f"{k} {v}" for k, v in facts["settings"]["sizes"].items())
    print(
        f"{shape}, {settings.dtype}, jax {facts['jax']}, {facts['device']},"
        f" {facts['cpus']} cores, median of {settings.repeats}"
    )
    print(_HEADER, flush=True)
    rows: list[_measure.Row] = []
    for name in settings.ops:
        measured = _measure.measure(name, settings)
        rows += measured
        print("\n".join(lines(measured)), flush=True)
    if path is not None:
        facts["rows"] = [row._asdict() for row in rows]
        path.write_text(json.dumps(facts, indent=1) + "\n")
    return rows


def _define_flags() -> None:
    default, sizes = _measure.Settings(), _cases.Sizes()
    flags.DEFINE_list("ops", list(default.ops), "Operators to measure.")
    flags.DEFINE_list("forms", list(default.forms), "Forms to measure.")
    flags.DEFINE_list(
        "chunk_sizes", [], "Chunk sizes to try; empty: the operator's own."
    )
    flags.DEFINE_integer("batch", sizes.batch, "Rows.")
    flags.DEFINE_integer("length", sizes.length, "Tokens a row.")
    flags.DEFINE_integer("heads", sizes.heads, "Heads.")
    flags.DEFINE_integer("key_dim", sizes.key_dim, "Keys' and states' size.")
    flags.DEFINE_integer("value_dim", sizes.value_dim, "Values' size.")
    flags.DEFINE_enum("dtype", default.dtype, _measure.DTYPES, "Of the inputs.")
    flags.DEFINE_integer("repeats", default.repeats, "Measured runs of each.")
    flags.DEFINE_bool("baseline", default.baseline, "Measure the scan too.")
    flags.DEFINE_bool(
        "growth",
        default.growth,
        f"Compile at {_measure.GROWTH} times the length too.",
    )
    flags.DEFINE_string("json", None, "Where to write the table as JSON.")


def _settings(values: flags.FlagValues) -> _measure.Settings:
    try:
        chunk_sizes = tuple(int(size) for size in values.chunk_sizes)
    except ValueError:
        raise ValueError(
            f"chunk_sizes must be integers, got {values.chunk_sizes}"
        ) from None
    return _measure.Settings(
        ops=tuple(values.ops),
        forms=tuple(values.forms),
        chunk_sizes=chunk_sizes,
        sizes=_cases.Sizes(
            *(getattr(values, name) for name in _cases.Sizes._fields)
        ),
        dtype=values.dtype,
        repeats=values.repeats,
        baseline=values.baseline,
        growth=values.growth,
    )


def main(argv: Sequence[str]) -> None:
    """The command; anything but flags is refused."""
    if len(argv) > 1:
        raise app.UsageError(f"flags only, got {' '.join(argv[1:])}")
    values = flags.FLAGS
    try:
        settings = _settings(values)
        _measure.check(settings)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    run(settings, pathlib.Path(values.json) if values.json else None)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
