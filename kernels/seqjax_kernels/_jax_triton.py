"""Launch through jax-triton.

Its release 0.3.1 keeps kernels out of CUDA graphs, checks no PTX before the
first launch, and maps arrays to arguments by position.
"""

# pyright: reportMissingImports=false

import os

import jax

from seqjax_kernels import devices


def launch(program, inputs, outputs, grid):
    """One launch over `grid`, as `_direct.launch` does it.

    Raises:
      Unsupported: an optional input is absent in front of one that is given.
    """
    # Importing jax-triton asks for JAX's CUDA plugin, which would ask for a
    # driver where there is none.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    folder = os.environ.get("TRITON_CACHE_DIR")
    import jax_triton

    if folder:  # which the import sets to nothing
        os.environ["TRITON_CACHE_DIR"] = folder
    names = [name for name, _ in program.pointers]
    if program.kernel.arg_names[: len(names)] != names:
        raise devices.Unsupported(
            f"launcher 'jax_triton' maps arrays to arguments by position, and"
            f" {program.kernel.__name__} has absent inputs in front of arrays;"
            " use launcher='direct'"
        )

    # It refuses vmap by itself.
    @jax.custom_batching.sequential_vmap
    def run(*arrays):
        return tuple(
            jax_triton.triton_call(
                *arrays,
                kernel=program.kernel,
                out_shape=tuple(outputs),
                grid=grid,
                name=program.kernel.__name__,
                num_warps=program.num_warps,
                num_stages=program.num_stages,
                compute_capability=program.arch,
                **dict(program.constants),
            )
        )

    return run(*inputs)
