"""Compilation for GPUs where there is none.

XLA and jaxlib's launcher look for ptxas and libdevice in a CUDA toolkit; those
that come with Triton do.
"""

import os
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
TOOLKIT = ROOT / ".cache" / "cuda" / WORKER
# Compiled kernels are kept between runs.
os.environ["TRITON_CACHE_DIR"] = str(ROOT / ".cache" / "triton" / WORKER)
# The plugin is there to compile; no driver is.
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.symlink_to(target)


def pytest_configure(config):
    """Names the toolkit, before the first compilation reads the flags."""
    from triton.backends.nvidia import compiler

    ptxas = pathlib.Path(compiler.get_ptxas(90).path)
    _link(TOOLKIT / "bin" / "ptxas", ptxas)
    _link(
        TOOLKIT / "nvvm" / "libdevice" / "libdevice.10.bc",
        ptxas.parents[1] / "lib" / "libdevice.10.bc",
    )
    # What was compiled for a device that is not there cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ["XLA_FLAGS"] += f" --xla_gpu_cuda_data_dir={TOOLKIT}"
    os.environ["PATH"] = f"{TOOLKIT / 'bin'}:{os.environ['PATH']}"


@pytest.fixture(autouse=True)
def _not_interpreting():
    if os.environ.get("TRITON_INTERPRET"):
        pytest.fail("these tests compile: run them without TRITON_INTERPRET")
