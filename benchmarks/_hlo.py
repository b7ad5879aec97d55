"""What a compiled program sends between devices, read from its HLO text.

Each collective is counted as often as it runs: those in the body of a loop by
the loop's trip count, which XLA notes beside it.  Bytes are those of the
result on one device.
"""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_BITS = re.compile(r"[a-z]+?(\d+)(?:e\d.*|b\d.*)?$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|true_computation|false_computation)="
    r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One collective instruction of a program.

    Attributes:
      kind: as XLA names it, one of KINDS.
      bytes: of its result on one device, each time it runs.
      times: how often it runs in one call of the program.
      backward: whether it came of transposing, which JAX notes in its name.
    """

    kind: str
    bytes: int
    times: int
    backward: bool


def collectives(text: str) -> list[Collective]:
    """All collectives that a program runs.

    Args:
      text: ``compiled.as_text()``.

    Returns:
      One entry an instruction, in no promised order.

    Raises:
      ValueError: a collective inside a loop of unknown length.
    """
    bodies, entry = _computations(text)
    times = {name: 0 for name in bodies}
    unknown = set()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            trips = 1
            if re.search(r"\bwhile\(", line):
                found = _TRIPS.search(line)
                trips = int(found[1]) if found else 1
                if not found:
                    unknown.update(n for k, n in _CALLED.findall(line))
            for called in _called(line):
                if called in bodies:
                    visit(called, count * trips)

    visit(entry, 1)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            one = _collective(line)
            if one is None or not times[name]:
                continue
            if name in unknown:
                raise ValueError(
                    f"{one[0]} in computation {name}, the body of a loop whose "
                    f"length XLA does not know: how often it runs cannot be "
                    f"told"
                )
            backward = "transpose(" in line
            found.append(Collective(*one, times[name], backward))
    return found


def totals(found: list[Collective]) -> dict[str, tuple[int, int]]:
    """Number of runs and bytes of each kind, those of all runs together."""
    sums: dict[str, tuple[int, int]] = {}
    for one in found:
        count, size = sums.get(one.kind, (0, 0))
        sums[one.kind] = (
            count + one.times,
            size + one.times * one.bytes,
        )
    return sums


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found and " = " not in line.split("(", 1)[0]:
            name = found[2]
            bodies[name] = []
            entry = name if found[1] else entry
        elif name and line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line)
    if not entry:
        raise ValueError(
            "text must be that of a compiled program, with an ENTRY "
            f"computation, got {text[:60]!r}"
        )
    return bodies, entry


def _called(line: str) -> list[str]:
    names = [name for _, name in _CALLED.findall(line)]
    for group in _BRANCHES.findall(line):
        names += [name.strip(" %") for name in group.split(",")]
    return names


def _collective(line: str) -> tuple[str, int] | None:
    """Kind and result bytes, None for any other instruction.

    Of an asynchronous pair only the half that ends it has the plain result.
    """
    for kind in KINDS:
        found = re.search(rf" = (.*?) {kind}(?:-done)?\(", line)
        if found:
            return kind, _bytes(found[1])
    return None


def _bytes(shape: str) -> int:
    """Bytes of an array type or a tuple of them, such as "f32[8,2]{1,0}"."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        if dtype == "token":
            continue
        found = _BITS.match(dtype)
        bits = 8 if dtype == "pred" or not found else int(found[1])
        count = math.prod(int(d) for d in dims.split(",") if d)
        total += -(-count * bits // 8)
    return total
