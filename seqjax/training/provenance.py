"""Which code, libraries and devices a run had."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

from seqjax.training import _files
from seqjax.training import _processes

_PACKAGES = (
    "seqjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_hash() -> str:
    """The commit of the source tree, "+changes" if edited; "" without git."""
    folder = pathlib.Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+changes" if changes else "")


def collect() -> dict[str, Any]:
    """Versions, commit and devices, JSON-able."""
    return {
        "git": git_hash(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }


def write(directory: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes DIR/versions.json, that of the latest start."""
    if not _processes.is_first():
        return
    text = json.dumps(facts, indent=2) + "\n"
    _files.replace(directory / "versions.json", text.encode())
