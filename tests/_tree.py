"""The files of this repository, for the tests that read them."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The importable folders; kernels is only a shelf for its package.
SOURCE_FOLDERS = (
    "seqjax",
    "kernels/seqjax_kernels",
    "experiments",
    "benchmarks",
)


def python_files(*folders: str) -> list[pathlib.Path]:
    """All Python files under the folders, those of the packages by default."""
    found = []
    for folder in folders or SOURCE_FOLDERS:
        found += sorted((ROOT / folder).rglob("*.py"))
    return found


def module_name(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    """The dotted name under which a file of the packages is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "kernels":
        parts = parts[1:]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)
