"""The rule of the house: imports run downward, and only to what is declared.

    experiments, benchmarks
    training, generation, interop
    models, data
    layers
    ops
    parallel
    recurrence, kernels

A room imports rooms below its own, never one beside or above it; kernels
imports nothing of seqjax. The mathematics (ops and below) is free of Flax.
"""

import ast
import pathlib
import re
import sys
import tomllib
from typing import NamedTuple

import pytest

from tests import _tree

FLOORS = (
    ("recurrence", "kernels"),
    ("parallel",),
    ("ops",),
    ("layers",),
    ("models", "data"),
    ("training", "generation", "interop"),
    ("experiments", "benchmarks"),
)
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
NO_FLAX = ("recurrence", "kernels", "parallel", "ops")
TESTS_ONLY = ("chex", "hypothesis", "pytest")
# Slow to import or missing on many machines: only inside a function.
LAZY_ONLY = (
    "tensorboardX",
    "matplotlib",
    "torch",
    "transformers",
    "tensorflow",
    "triton",
    "jax_triton",
    "jaxlib",  # what it holds beside jax is not public
    "wandb",
    "huggingface_hub",
    "tokenizers",
)
# Distributions whose import name is another.
IMPORT_NAMES = {"absl-py": "absl", "orbax-checkpoint": "orbax"}


class Import(NamedTuple):
    """One imported module, or one name imported from a module."""

    line: int
    module: str  # what stands after `from` or `import`, made absolute
    name: str | None  # what stands after the second `import`
    lazy: bool  # inside a function

    @property
    def root(self) -> str:
        return self.module.split(".")[0]


def imports_of(source: str, module: str, is_package: bool) -> list[Import]:
    """Every import statement of a file, wherever it stands."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(node.lineno, alias.name, None, lazy))
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parts = module.split(".")
                parts = parts[: len(parts) - up]
                origin = ".".join(parts + ([origin] if origin else []))
            for alias in node.names:
                found.append(Import(node.lineno, origin, alias.name, lazy))
        inside = isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or inside)

    visit(ast.parse(source), False)
    return found


def room_of(module: str, name: str | None = None) -> str | None:
    """The room a dotted module name belongs to; None outside the house."""
    parts = module.split(".") + ([name] if name else [])
    if parts[0] == "seqjax":
        # seqjax itself is a doorplate: it holds no code to import.
        return parts[1] if len(parts) > 1 else None
    if parts[0] == "seqjax_kernels":
        return "kernels"
    return parts[0] if parts[0] in FLOOR_OF else None


def faults_of(
    source: str, module: str, is_package: bool, declared: set[str]
) -> list[str]:
    """What one file does against the rule, in words."""
    room = room_of(module)
    faults = []
    for entry in imports_of(source, module, is_package):
        there = room_of(entry.module, entry.name)
        said = entry.module + (f".{entry.name}" if entry.name else "")
        said = f"{module}:{entry.line} imports {said}"
        if there is not None:
            if room is None:
                faults.append(f"{said}; {module} holds no imports of the house")
            elif there not in FLOOR_OF:
                if entry.name != "__version__":
                    faults.append(f"{said}: {there} is no room of the house")
            elif there != room and FLOOR_OF[there] >= FLOOR_OF[room]:
                faults.append(f"{said}: {there} is not below {room}")
            continue
        root = entry.root
        if root in sys.stdlib_module_names or root in ("seqjax", "__future__"):
            continue
        if root == "tests" and room == "benchmarks":
            continue  # the error table measures what the suite describes
        if room in NO_FLAX and root == "flax":
            faults.append(f"{said}: {room} is free of Flax")
        if root in TESTS_ONLY:
            faults.append(f"{said}: {root} is for tests")
        elif root in LAZY_ONLY:
            kernels = room == "kernels" and not is_package
            if not entry.lazy and not (kernels and root == "triton"):
                faults.append(f"{said}: import {root} in the function using it")
        elif root not in declared:
            faults.append(f"{said}: pyproject.toml does not declare {root}")
    return faults


def declared_imports() -> set[str]:
    """Import names of the dependencies that pyproject.toml declares."""
    text = (_tree.ROOT / "pyproject.toml").read_text()
    names = [
        re.split(r"[^\w.-]", entry, maxsplit=1)[0]
        for entry in tomllib.loads(text)["project"]["dependencies"]
    ]
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_imports_run_downward():
    declared = declared_imports()
    faults = []
    for path in _tree.python_files():
        faults += faults_of(
            path.read_text(),
            _tree.module_name(path),
            path.name == "__init__.py",
            declared,
        )
    assert not faults, "\n".join(faults)


def test_modules_are_imported_not_names():
    # A name taken out of a module hides where it lives; packages may offer
    # the names of their own private modules.
    faults = []
    for path in _tree.python_files():
        if path.name == "__init__.py":
            continue
        module = _tree.module_name(path)
        for entry in imports_of(path.read_text(), module, False):
            if entry.name is None or room_of(entry.module) is None:
                continue
            if entry.root == "seqjax_kernels":
                parent = _tree.ROOT / "kernels"
            else:
                parent = _tree.ROOT
            target = parent.joinpath(*entry.module.split("."), entry.name)
            if not (target.is_dir() or target.with_suffix(".py").is_file()):
                faults.append(
                    f"{module}:{entry.line} takes the name {entry.name} out "
                    f"of {entry.module}: import the module"
                )
    assert not faults, "\n".join(faults)


def test_every_declared_dependency_is_used():
    used = set()
    for path in _tree.python_files():
        module = _tree.module_name(path)
        package = path.name == "__init__.py"
        used |= {
            entry.root
            for entry in imports_of(path.read_text(), module, package)
        }
    assert declared_imports() - used == set()


def test_every_room_has_a_floor():
    rooms = {
        path.name
        for path in (_tree.ROOT / "seqjax").iterdir()
        if path.is_dir() and any(path.rglob("*.py"))
    }
    assert rooms <= set(FLOOR_OF), f"no floor for {rooms - set(FLOOR_OF)}"


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("seqjax.ops.x", "from seqjax import recurrence", None),
        ("seqjax.ops.x", "from seqjax.ops import _y", None),
        ("seqjax.ops.x", "import seqjax_kernels.gla", None),
        ("seqjax.ops.x", "from . import y", None),
        ("seqjax.ops.x", "from seqjax import layers", "not below ops"),
        ("seqjax.ops.x", "from .. import layers", "not below ops"),
        ("seqjax.ops.x", "def f():\n  import flax.linen", "free of Flax"),
        ("seqjax.parallel.x", "from seqjax.ops import y", "not below parallel"),
        ("seqjax.models.x", "import seqjax.data.text", "not below models"),
        ("seqjax.data.x", "import numpy, torch", "in the function using it"),
        ("seqjax.data.x", "def f():\n  import torch", None),
        ("seqjax.data.x", "import pandas", "does not declare pandas"),
        ("seqjax.layers.x", "import chex", "for tests"),
        ("seqjax_kernels.x", "from seqjax import recurrence", "not below"),
        ("seqjax_kernels.x", "import triton.language as tl", None),
        ("seqjax_kernels.x", "import jax_triton", "in the function using it"),
        ("seqjax.ops.x", "import triton", "in the function using it"),
        ("seqjax.recurrence.x", "import seqjax_kernels", "not below"),
        ("benchmarks.x", "from seqjax import ops, training", None),
        ("benchmarks.x", "from tests.conformance import table", None),
        ("seqjax.ops.x", "from tests import oracles", "does not declare tests"),
        ("experiments.x", "from benchmarks import y", "not below experiments"),
        ("seqjax.training.x", "from seqjax import utils", "no room"),
        ("seqjax.training.x", "from seqjax import __version__", None),
        ("seqjax", "from seqjax import ops", "holds no imports"),
    ],
)
def test_rule_is_read_from_the_source(module, source, fault):
    faults = faults_of(source, module, module == "seqjax", {"numpy", "flax"})
    if fault is None:
        assert faults == []
    else:
        assert len(faults) == 1 and fault in faults[0], faults


def test_module_names_follow_the_folders():
    root = pathlib.Path("/r")
    name = {
        "seqjax/ops/x.py": "seqjax.ops.x",
        "seqjax/ops/__init__.py": "seqjax.ops",
        "kernels/seqjax_kernels/gla/x.py": "seqjax_kernels.gla.x",
        "experiments/train.py": "experiments.train",
    }
    assert {p: _tree.module_name(root / p, root) for p in name} == name
