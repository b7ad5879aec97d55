"""What of the GPU benchmark needs no GPU, in processes beside it.

Triton compiles kernels in Python, one after another in a process: workers
compile those of all rows into Triton's folder on disk, where the process with
the GPU finds them.  They also make the results in float64.
"""

from concurrent import futures
import multiprocessing
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _gpu_cases
from seqjax_kernels import _direct
from seqjax_kernels import registry

_MOST = 12


def start(workers: int | None = None) -> futures.Executor:
    """Workers that see no GPU; two processors are left to the benchmark."""
    if workers is None:
        workers = max(1, min(_MOST, (os.cpu_count() or 1) - 2))
    return futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _hide_the_gpu
    )


def _hide_the_gpu() -> None:
    jax.config.update("jax_platforms", "cpu")


def compile_kernels(name: str, shape: _gpu_cases.Shape, kind: str) -> float:
    """Compiles the kernels of a row, forward and backward.

    Args:
      name: of a case.
      shape: of the row.
      kind: of the device, as JAX names it.

    Returns:
      Seconds that Triton took.
    """
    case = _gpu_cases.named(name)
    forward, both = _gpu_cases.functions(case, shape, "triton")
    given = _gpu_cases.structs(case, shape)
    y_bar = jax.ShapeDtypeStruct(
        _gpu_cases.out_shape(case, shape), jnp.bfloat16
    )
    calls = [registry.Case("forward", forward, tuple(given))]
    if shape.length > 1:
        calls.append(registry.Case("both", both, (y_bar, *given)))
    seconds = 0.0
    for call in calls:
        for launched in registry.launches(call, kind):
            begin = time.perf_counter()
            _direct.compile_program(launched.program)
            seconds += time.perf_counter() - begin
    return seconds


def exact(name: str, shape: _gpu_cases.Shape, seed: int) -> list[np.ndarray]:
    """y and all gradients of a case in float64, by plain JAX."""
    case = _gpu_cases.named(name)
    _, both = _gpu_cases.functions(case, shape, "xla")
    arrays = _gpu_cases.make_inputs(case, shape, seed)
    given = [_gpu_cases.make_bar(case, shape), *arrays.values()]
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in given]
        return [np.asarray(a) for a in jax.jit(both)(*wide)]
