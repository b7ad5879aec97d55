"""GPUs that kernels are compiled for: their limits, and which one is meant.

Numbers are those of the vendor's data sheets; nothing here was measured.
"""

from typing import NamedTuple

import jax


class Device(NamedTuple):
    """What the choice of a configuration needs to know of a GPU.

    Attributes:
      kind: as JAX names it, or a part of that name.
      arch: compute capability, 90 for 9.0.
      multiprocessors: how many.
      bandwidth: of its memory, bytes a second.
      flops: dense bfloat16 matrix FLOPs a second.
    """

    kind: str
    arch: int
    multiprocessors: int
    bandwidth: float
    flops: float


# A longer name stands before one that it contains.
DEVICES = (
    Device("GH200", 90, 132, 4.0e12, 989e12),
    Device("GB200", 100, 148, 8.0e12, 2250e12),
    Device("H200", 90, 132, 4.8e12, 989e12),
    Device("H100", 90, 132, 3.35e12, 989e12),
    Device("B200", 100, 148, 8.0e12, 2250e12),
    Device("A100", 80, 108, 2.04e12, 312e12),
)
# The oldest with bfloat16 tensor cores and asynchronous copies.
OLDEST = 80
# Bytes of shared memory that one block may ask for, by compute capability.
_SHARED = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448}
_SHARED |= {100: 232448, 103: 232448, 120: 101376, 121: 101376}


class Unsupported(ValueError):
    """Why a kernel cannot run or be compiled here, and the way out."""


def shared_limit(arch: int) -> int:
    """Bytes of shared memory one block may use; the least of all if unknown."""
    return _SHARED.get(arch, min(_SHARED.values()))


def registers_limit(arch: int) -> int:
    """Registers of one multiprocessor, 65536 on all supported GPUs."""
    check_arch(arch)
    return 65536


def warps_limit(arch: int) -> int:
    """Warps that one multiprocessor holds at once."""
    return 48 if arch in (86, 89, 120, 121) else 64


def check_arch(arch: int) -> int:
    """Returns `arch` if kernels are written for it.

    Raises:
      Unsupported: an older GPU.
    """
    if arch < OLDEST:
        raise Unsupported(
            f"Triton kernels need an NVIDIA GPU of compute capability"
            f" {OLDEST / 10} or newer, got {arch / 10}; use"
            " implementation='xla'"
        )
    return arch


def find(kind: str) -> Device | None:
    """The entry of a device kind, such as "NVIDIA H100 80GB HBM3"."""
    for device in DEVICES:
        if device.kind in kind:
            return device
    return None


def meant() -> tuple[str, int]:
    """Kind and compute capability of the GPU that is traced for.

    That of the abstract mesh's device if one is set, so that a program can be
    compiled where there is no GPU, else that of the first local device.

    Raises:
      Unsupported: it is no NVIDIA GPU, is too old, or is unknown.
    """
    abstract = getattr(
        jax.sharding.get_abstract_mesh(), "abstract_device", None
    )
    if abstract is not None and getattr(abstract, "platform", None) == "gpu":
        known = find(abstract.device_kind)
        if known is None:
            kinds = ", ".join(d.kind for d in DEVICES)
            raise Unsupported(
                f"the abstract mesh names the device {abstract.device_kind!r},"
                f" whose compute capability is not known; known are {kinds}"
            )
        return abstract.device_kind, known.arch
    if jax.default_backend() != "gpu":
        raise Unsupported(
            "Triton kernels need an NVIDIA GPU, and JAX runs on"
            f" {jax.default_backend()} here; use implementation='xla', or set"
            " TRITON_INTERPRET=1 before Python starts to interpret them"
        )
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise Unsupported(
            f"Triton kernels need an NVIDIA GPU, got {device.device_kind!r};"
            " use implementation='xla'"
        )
    return device.device_kind, check_arch(int(major) * 10 + int(minor))
