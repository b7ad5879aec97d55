"""The file of each family with what its kernels take, and its names."""

import json
import pathlib

from seqjax_kernels import registry

ROOT = pathlib.Path(__file__).resolve().parents[3]
# One device of each compute capability that kernels are written for.
KINDS = ("H200", "A100", "B200")


def path(family: str) -> pathlib.Path:
    """Where a family's numbers stand."""
    return ROOT / "kernels" / "seqjax_kernels" / family / "resources.json"


def read(family: str) -> dict:
    """{kind: {name: entry}}, empty where nothing was written yet."""
    file = path(family)
    return json.loads(file.read_text()) if file.exists() else {}


def write(family: str, numbers: dict) -> None:
    """Replaces a family's numbers, one kernel a line."""
    parts = []
    for kind, entries in numbers.items():
        rows = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(entries[name])}"
            for name in sorted(entries)
        )
        parts.append(f"  {json.dumps(kind)}: {{\n{rows}\n  }}")
    path(family).write_text("{\n" + ",\n".join(parts) + "\n}\n")


def launches(case: registry.Case, kind: str) -> dict:
    """{name: launch} of a case; a kernel launched twice has two names."""
    found = {}
    for launched in registry.launches(case, kind):
        name = f"{case.name}: {launched.program.kernel.__name__}"
        again = 1 + sum(n.split(" #")[0] == name for n in found)
        found[name if again == 1 else f"{name} #{again}"] = launched
    return found


def entry(found) -> dict:
    """What of a kernel's resources is written down."""
    return {
        "registers": found.registers,
        "shared": found.shared,
        "warps": found.warps,
        "hgmma": found.hgmma,
        "mma": found.mma,
    }
