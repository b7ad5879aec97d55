"""Launch through jaxlib's own Triton call, without jax-triton.

Triton compiles the kernel for a compute capability, which needs no GPU; the
PTX travels in the program and jaxlib's CUDA plugin loads and launches it.
`jaxlib.gpu_triton` is not public, so it is named in this file alone.
"""

# pyright: reportMissingImports=false

import functools
import os
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

_TARGET = "triton_kernel_call_ffi"
# XLA aligns every buffer to at least this many bytes.
_ALIGNMENT = 16
_TYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "int8": "i8",
    "uint8": "u8",
    "int32": "i32",
    "uint32": "u32",
    "int64": "i64",
    "bool": "i1",
}


class Program(NamedTuple):
    """All that the compilation of a kernel depends on; hashable.

    Attributes:
      kernel: the function under `triton.jit`.
      pointers: ((argument, dtype), ...) of the arrays in order.
      constants: ((argument, value), ...) of the constexpr arguments.
      num_warps: warps of a block.
      num_stages: depth of software pipelining.
      arch: compute capability, 90 for 9.0.
    """

    kernel: Any
    pointers: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    arch: int


@functools.cache
def compile_program(program: Program):
    """Compiles with Triton, without a GPU; returns its CompiledKernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # jax-triton, once imported, leaves Triton without a folder to cache in,
    # and then its compiler fails.
    if os.environ.get("TRITON_CACHE_DIR") == "":
        del os.environ["TRITON_CACHE_DIR"]
    names = program.kernel.arg_names
    signature = dict.fromkeys(names, "constexpr")
    signature |= {n: "*" + _TYPES[d] for n, d in program.pointers}
    aligned = {
        (names.index(n),): [["tt.divisibility", _ALIGNMENT]]
        for n, _ in program.pointers
    }
    source = ASTSource(
        program.kernel, signature, dict(program.constants), aligned
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", program.arch, 32),
        options=dict(
            num_warps=program.num_warps, num_stages=program.num_stages
        ),
    )


def launch(program: Program, inputs, outputs, grid) -> list[jax.Array]:
    """One launch over `grid`; the arrays stand in the order of `pointers`."""
    from jaxlib import gpu_triton

    compiled = compile_program(program)
    metadata = compiled.metadata
    # Warp specialization raises the number of warps, and descriptors made on
    # the device need scratch: both are the compiler's to say.
    scratch = ()
    if getattr(metadata, "global_scratch_size", 0):
        scratch = (
            metadata.global_scratch_size,
            metadata.global_scratch_align,
        )
    binary = gpu_triton.TritonKernel(
        metadata.name,
        metadata.num_warps,
        metadata.num_ctas,
        metadata.shared,
        compiled.asm["ptx"],
        compiled.asm["ttir"],
        program.arch,
        *scratch,
    )
    arrays = [
        gpu_triton.create_array_parameter(0, _ALIGNMENT)
        for _ in program.pointers
    ]
    call = gpu_triton.TritonKernelCall(binary, *grid, arrays)
    run = jax.ffi.ffi_call(_TARGET, tuple(outputs), vmap_method="sequential")
    opaque = zlib.compress(call.to_proto(program.kernel.__name__, b""))
    return list(run(*inputs, opaque=opaque))


def dtype_name(dtype) -> str:
    """The name of a dtype that kernels take.

    Raises:
      ValueError: another dtype.
    """
    name = str(np.dtype(dtype))
    if name not in _TYPES:
        raise ValueError(
            f"kernels take arrays of {', '.join(_TYPES)}, got {name}"
        )
    return name
