"""What a compiled kernel takes of a GPU, found without one.

ptxas and nvdisasm come with Triton.
"""

# pyright: reportMissingImports=false

import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

from seqjax_kernels import _direct
from seqjax_kernels import devices

# Each block takes this much shared memory beside its own.
_RESERVED = 1024
_REGISTERS_OF_A_WARP = 256  # they are handed out in steps of this


class Resources(NamedTuple):
    """Of one kernel.

    Attributes:
      registers: of a thread.
      spill: bytes that ptxas stores for want of registers.
      shared: bytes of shared memory of a block.
      warps: of a block.
      hgmma: warpgroup matrix instructions (compute capability 9.0).
      mma: other tensor-core instructions.
    """

    registers: int
    spill: int
    shared: int
    warps: int
    hgmma: int
    mma: int


def of(program: _direct.Program) -> Resources:
    """Compiles a program with Triton and reads what it takes."""
    compiled = _direct.compile_program(program)
    arch = program.arch
    # Since 9.0 Triton writes instructions of one generation only.
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    log, listing = _assemble(compiled.asm["ptx"], name, arch)
    return Resources(
        _number(r"Used (\d+) registers", log),
        _number(r"(\d+) bytes spill stores", log),
        compiled.metadata.shared,
        compiled.metadata.num_warps,
        len(re.findall(r"\bHGMMA", listing)),
        len(re.findall(r"\b(?:HMMA|UTCHMMA|UTCQMMA|UTCMMA|OMMA)", listing)),
    )


def blocks_at_once(found: Resources, arch: int) -> int:
    """How many blocks of a kernel one multiprocessor holds; 0: it fits none."""
    limit = devices.shared_limit(arch)
    if found.shared > limit:
        return 0
    step = _REGISTERS_OF_A_WARP
    registers = (found.registers * 32 + step - 1) // step * step
    return min(
        devices.registers_limit(arch) // (registers * found.warps),
        (limit + _RESERVED) // (found.shared + _RESERVED),
        devices.warps_limit(arch) // found.warps,
        32,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas does not say {pattern}: {text}")
    return int(found[1])


def _assemble(ptx: str, name: str, arch: int) -> tuple[str, str]:
    """What ptxas says of a kernel, and its instructions."""
    from triton.backends.nvidia import compiler

    ptxas = pathlib.Path(compiler.get_ptxas(arch).path)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernel.ptx"
        cubin = pathlib.Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        log = subprocess.run(
            [ptxas, "-v", "--gpu-name", name, source, "-o", cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        listing = subprocess.run(
            [ptxas.with_name("nvdisasm"), "-c", cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return log, listing
