r"""What sequence parallelism sends, counted in the compiled program, and costs.

    python -m benchmarks.sequence_parallel                  # every operator
    python -m benchmarks.sequence_parallel --ops=ssd --methods=ring \
        --notime --json=/tmp/ssd.json

T is sharded over the devices (8 simulated ones on a CPU).  forward, backward:
collectives of the values and of the gradients of all inputs with a time axis,
number and bytes of their results on one device; the same at 8 T, or said.
+initial, +final: what a differentiated initial state, and a used final state,
add.  memory: peak temporary bytes a device, on 2, 4 and 8 devices with as many
tokens each, over those on 2.  ms: forward and backward, the median.  A broken
promise is printed under its row, and the command ends with code 1.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import platform
import sys
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax

from benchmarks import _cases
from benchmarks import _hlo
from benchmarks import _promises
from benchmarks import _sharded
from benchmarks import _timing

LONGER = 8
MEMORY_DEVICES = (2, 4, 8)
FLAT = 0.1
_HEADER = (
    f"{'operator':31}{'exchange':12}{'forward':>28}{'backward':>28}"
    f"{'+initial':>24}{'+final':>24}{'memory':>16}{'ms':>9}"
)
_SHORT = {"collective-permute": "permute"}


class Settings(NamedTuple):
    """What to measure; the flags of the same names say what each is."""

    ops: tuple[str, ...] = tuple(_cases.CASES)
    methods: tuple[str, ...] = ("all_gather", "prefix_scan", "ring", "window")
    sizes: _cases.Sizes = _cases.Sizes(length=4096)
    devices: int = 8
    memory_tokens: int = 4096
    repeats: int = 5
    counts: bool = True
    time: bool = True
    memory: bool = True


class Row(NamedTuple):
    """One operator with one method.

    Attributes:
      operator: a name of the case table.
      method: see ``_sharded.methods``.
      forward: collectives of the values, by kind: number and bytes; this and
        the following are {} where nothing was counted.
      backward: those of the gradients.
      initial: what a differentiated initial state adds to both; {} for
        softmax attention, whose state is the tokens themselves.
      final: what a used final state adds to both; likewise.
      temporary_bytes: peak scratch memory of a device, for each number of
        devices at equal tokens a device; {} where not measured.
      milliseconds: median of forward and backward; None where not measured.
      faults: broken promises, in words.
    """

    operator: str
    method: str
    forward: dict[str, tuple[int, int]]
    backward: dict[str, tuple[int, int]]
    initial: dict[str, tuple[int, int]]
    final: dict[str, tuple[int, int]]
    temporary_bytes: dict[int, int]
    milliseconds: float | None
    faults: list[str]


def measure(name: str, settings: Settings) -> list[Row]:
    """The rows of one operator; [] where it cannot be sharded."""
    methods = [m for m in _sharded.methods(name) if _taken(m, settings)]
    rows, calls = [], []
    for method in methods:
        shape = _sharded.Shape(settings.sizes, settings.devices, method, "both")
        seen = _seen(name, shape) if settings.counts else {"both": []}
        memory = _memory(name, shape, settings) if settings.memory else {}
        faults = _not_flat(name, method, memory)
        if settings.counts:
            faults += _promises.faults(
                name, method, settings.sizes, settings.devices, seen
            )
        forward, backward = (
            _by_kind(part) for part in _promises.directions(seen["both"])
        )
        here = _hlo.totals(seen["both"])
        rows.append(
            Row(
                name,
                method,
                forward,
                backward,
                _added(_hlo.totals(seen.get("initial", seen["both"])), here),
                _added(_hlo.totals(seen.get("final", seen["both"])), here),
                memory,
                None,
                faults,
            )
        )
        if settings.time:
            calls.append(_sharded.runnable(name, shape))
    if settings.time:
        timings = _timing.interleave(calls, settings.repeats)
        rows = [
            row._replace(milliseconds=timing.median)
            for row, timing in zip(rows, timings, strict=True)
        ]
    return rows


def _taken(method: str, settings: Settings) -> bool:
    return method == "halo" or method in settings.methods


def _seen(name: str, shape: _sharded.Shape) -> dict[str, list[_hlo.Collective]]:
    longer = shape.sizes._replace(length=LONGER * shape.sizes.length)
    shapes = {
        "both": shape,
        "longer": shape._replace(sizes=longer),
    }
    if name != "softmax_attention":  # whose state is the tokens themselves
        shapes["initial"] = shape._replace(use="initial")
        shapes["final"] = shape._replace(use="final")
    return {
        use: _hlo.collectives(_sharded.compiled(name, one).as_text())
        for use, one in shapes.items()
    }


def _memory(
    name: str, shape: _sharded.Shape, settings: Settings
) -> dict[int, int]:
    found = {}
    for devices in MEMORY_DEVICES:
        if devices > settings.devices:
            continue
        length = devices * settings.memory_tokens
        program = _sharded.compiled(
            name,
            shape._replace(
                sizes=shape.sizes._replace(length=length), devices=devices
            ),
        )
        found[devices] = program.memory_analysis().temp_size_in_bytes
    return found


def _not_flat(name: str, method: str, memory: dict[int, int]) -> list[str]:
    if name not in _promises.ADDITIVE or len(memory) < 2:
        return []
    first, last = min(memory), max(memory)
    ratio = memory[last] / memory[first]
    if abs(ratio - 1) <= FLAT:
        return []
    return [
        f"memory of a device on {last} devices is {ratio:.2f} times that on "
        f"{first}: {memory[first]} and {memory[last]} B"
    ]


def _by_kind(
    part: list[_promises.Direction],
) -> dict[str, tuple[int, int]]:
    return {one.kind: (one.times, one.bytes) for one in part}


def _added(
    more: dict[str, tuple[int, int]], less: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    found = {}
    for kind in sorted(more.keys() | less.keys()):
        times, size = more.get(kind, (0, 0))
        before, below = less.get(kind, (0, 0))
        if (times, size) != (before, below):
            found[kind] = (times - before, size - below)
    return found


def line(row: Row) -> str:
    """The printed row, its faults below."""
    memory = [row.temporary_bytes[p] for p in sorted(row.temporary_bytes)]
    ratios = " ".join(f"{m / memory[0]:.2f}" for m in memory)
    time = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    text = (
        f"{row.operator:31}{row.method:12}{_cell(row.forward):>28}"
        f"{_cell(row.backward):>28}{_cell(row.initial):>24}"
        f"{_cell(row.final):>24}{ratios or '-':>16}{time:>9}"
    )
    return "\n".join([text, *(f"    BROKEN: {f}" for f in row.faults)])


def _cell(kinds: dict[str, tuple[int, int]]) -> str:
    return (
        ", ".join(
            f"{times} {_SHORT.get(kind, kind)} {_size(size)}"
            for kind, (times, size) in kinds.items()
        )
        or "-"
    )


def _size(size: int) -> str:
    return f"{size} B" if size < 10_000 else f"{size / 2**10:.1f} KiB"


def about(settings: Settings) -> dict[str, Any]:
    """Where and with what the table was made, for its JSON file."""
    flat = settings._asdict()
    flat["sizes"] = settings.sizes._asdict()
    return {
        "settings": flat,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
    }


def run(settings: Settings, path: pathlib.Path | None = None) -> list[Row]:
    """Measures, prints the table as it grows, writes JSON if a path is given.

    Raises:
      ValueError: a name or a number that cannot be measured.
    """
    check(settings)
    facts = about(settings)
    shape = " ".join(f"{k} {v}" for k, v in facts["settings"]["sizes"].items())
    print(
        f"{shape}, {settings.devices} devices, float32, jax {facts['jax']}, "
        f"{facts['device']}, {facts['cpus']} cores"
    )
    print(_HEADER, flush=True)
    rows: list[Row] = []
    for name in settings.ops:
        try:
            measured = measure(name, settings)
        except NotImplementedError as error:
            print(f"{name:31}has no sequence-parallel form: {error}")
            continue
        rows += measured
        print("\n".join(line(row) for row in measured), flush=True)
        if path is not None:
            facts["rows"] = [row._asdict() for row in rows]
            path.write_text(json.dumps(facts, indent=1) + "\n")
    broken = sum(len(row.faults) for row in rows)
    print(f"{broken} promises broken" if broken else "every promise is kept")
    return rows


def check(settings: Settings) -> None:
    """Refuses settings that cannot be measured, before anything is compiled.

    Raises:
      ValueError: names the field, what came and what is accepted.
    """
    for field, names, known in (
        ("ops", settings.ops, tuple(_cases.CASES)),
        ("methods", settings.methods, Settings().methods),
    ):
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{field} must be among {', '.join(known)}, got {name!r}"
                )
    there = jax.device_count()
    if not 2 <= settings.devices <= there:
        raise ValueError(
            f"devices must be from 2 to the {there} that are here, got "
            f"{settings.devices}; on a CPU set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={settings.devices}"
        )
    for field in ("memory_tokens", "repeats"):
        if getattr(settings, field) < 1:
            raise ValueError(
                f"{field} must be at least 1, got {getattr(settings, field)}"
            )
    if settings.sizes.length < 1 or settings.sizes.length % settings.devices:
        raise ValueError(
            f"length must be a multiple of devices = {settings.devices}, got "
            f"{settings.sizes.length}"
        )


def _define_flags() -> None:
    default = Settings()
    flags.DEFINE_list("ops", list(default.ops), "Operators to measure.")
    flags.DEFINE_list("methods", list(default.methods), "Ways to exchange.")
    flags.DEFINE_integer("batch", default.sizes.batch, "Rows.")
    flags.DEFINE_integer("length", default.sizes.length, "Tokens a row.")
    flags.DEFINE_integer("heads", default.sizes.heads, "Heads.")
    flags.DEFINE_integer("key_dim", default.sizes.key_dim, "Keys' size.")
    flags.DEFINE_integer("value_dim", default.sizes.value_dim, "Values' size.")
    flags.DEFINE_integer("devices", default.devices, "Parts of a row.")
    flags.DEFINE_integer(
        "memory_tokens", default.memory_tokens, "Of a device, for its memory."
    )
    flags.DEFINE_integer("repeats", default.repeats, "Measured runs of each.")
    flags.DEFINE_bool("counts", default.counts, "Read what is sent.")
    flags.DEFINE_bool("time", default.time, "Run the programs too.")
    flags.DEFINE_bool("memory", default.memory, "On 2, 4, 8 devices too.")
    flags.DEFINE_string("json", None, "Where to write the table as JSON.")


def main(argv: Sequence[str]) -> None:
    """The command; anything but flags is refused."""
    if len(argv) > 1:
        raise app.UsageError(f"flags only, got {' '.join(argv[1:])}")
    values = flags.FLAGS
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Acts on a CPU alone; more devices of another kind are not to be had.
        jax.config.update("jax_num_cpu_devices", values.devices)
    settings = Settings(
        ops=tuple(values.ops),
        methods=tuple(values.methods),
        sizes=_cases.Sizes(
            *(getattr(values, name) for name in _cases.Sizes._fields)
        ),
        devices=values.devices,
        memory_tokens=values.memory_tokens,
        repeats=values.repeats,
        counts=values.counts,
        time=values.time,
        memory=values.memory,
    )
    try:
        check(settings)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    rows = run(settings, pathlib.Path(values.json) if values.json else None)
    sys.exit(1 if any(row.faults for row in rows) else 0)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
