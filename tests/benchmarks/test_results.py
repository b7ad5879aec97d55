"""README's tables of speed say what the files they name hold."""

import json
import re

import pytest

from tests import _tree

RESULTS = _tree.ROOT / "benchmarks" / "results"
MIB = 2**20


def table_after(text):
    """Cells of the first table behind a piece of README's text."""
    page = (_tree.ROOT / "README.md").read_text()
    lines = page[page.index(text) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| ---"))
    rows = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def pairs(file):
    """{operator: {(direction, form): row}} in the order of the file."""
    found = {}
    for row in json.loads((RESULTS / file).read_text())["rows"]:
        key = row["direction"], row.get("form")
        found.setdefault(row["operator"], {})[key] = row
    return found


def says(cell, *values):
    """Whether a cell shows these numbers, rounded to the digits it shows."""
    shown = [text.strip() for text in cell.split("/")]
    assert len(shown) == len(values), cell
    for text, value in zip(shown, values, strict=True):
        if value is None:
            assert text == "-", cell
            continue
        decimals = len(text.partition(".")[2])
        room = 0.5 * 10.0**-decimals * (1 + 1e-6)
        assert abs(float(text) - value) <= room, (cell, value)


def test_peers():
    rows = table_after("Against the CPU paths of Hugging Face")
    measured = pairs("peers_cpu_2_cores.json")
    for (_, *cells), parts in zip(rows, measured.values(), strict=True):
        forward, both = parts["forward", None], parts["both", None]
        for row, three in ((forward, cells[:3]), (both, cells[3:])):
            for cell, field in zip(
                three, ("theirs", "ours", "times_faster"), strict=True
            ):
                says(cell, row[field])
        assert both["difference"] < 1e-6


def test_scans():
    rows = table_after("against a plain `lax.scan` over tokens")
    measured = pairs("cpu_2_cores.json")
    for (name, *cells), (operator, parts) in zip(
        rows, measured.items(), strict=True
    ):
        # `delta_rule`, a gate a head: delta_rule_gated
        assert operator.startswith(re.findall(r"`(\w+)`", name)[0])
        chunk, scan = parts["both", "chunk"], parts["both", "baseline_scan"]
        forward = parts["forward", "chunk"]
        for cell, *values in (
            (cells[0], scan["milliseconds"]),
            (cells[1], chunk["milliseconds"]),
            (cells[2], chunk["times_faster"]),
            (cells[3], forward["times_faster"]),
            (cells[4], *(x["temporary_bytes"] / MIB for x in (chunk, scan))),
            (cells[6], chunk["compile_seconds"]),
        ):
            says(cell, *values)
        if cells[5] != "-":  # too little memory to speak of
            says(cells[5], chunk["growth"])


@pytest.mark.parametrize("cell", ["2.1", "2", "0"])
def test_a_wrong_number_is_seen(cell):
    says("2.04 / -", 2.0449, None)
    with pytest.raises(AssertionError):
        says(cell, 2.6)
