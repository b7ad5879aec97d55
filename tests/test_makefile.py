"""What make would do, from its dry run on a made-up .venv."""

import os
import shutil
import subprocess
import sys

import pytest

from tests import _tree

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None, reason="needs make"
)


@pytest.fixture(name="folder")
def _folder(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(_tree.ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for stamp in (".made", ".base", ".test"):
        (tmp_path / ".venv" / stamp).touch()
    shutil.copytree(
        tmp_path / ".venv", tmp_path / ".venv-kernels", symlinks=True
    )
    (tmp_path / ".venv-kernels" / ".kernels").touch()
    other = tmp_path / "other_python"
    other.write_text("#!/bin/sh\necho /another 1\n")
    other.chmod(0o755)
    return tmp_path


def would_run(folder, *words):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    environment.pop("MAKEFLAGS", None)
    return subprocess.run(
        ["make", "--dry-run", *words],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_workdir_with_a_space(folder):
    printed = would_run(folder, "train", "WORKDIR=my runs/a")
    assert '--workdir="my runs/a"' in printed and "pip" not in printed


def test_another_python_makes_the_environment_anew(folder):
    for words, anew in (
        (("train",), False),
        (("train", f"PYTHON={sys.executable}"), False),
        (("train", "PYTHON=./other_python"), True),
        (("test-kernels",), False),
        (("test-kernels", "PYTHON=./other_python"), True),
    ):
        printed = would_run(folder, *words)
        assert ("venv --clear" in printed) == anew, words
        assert ("pip" in printed) == anew, words


def test_targets_never_install_side_by_side():
    assert "\n.NOTPARALLEL:\n" in (_tree.ROOT / "Makefile").read_text()
