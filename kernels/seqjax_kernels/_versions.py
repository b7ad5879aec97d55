"""Which releases of jaxlib, Triton and jax-triton work together."""

import functools
import importlib.metadata

from seqjax_kernels import devices

# (jaxlib, triton, jax-triton): what the gpu extra installs and the tests run.
TESTED = (
    ("0.10.2", "3.6.0", "0.3.1"),
    ("0.11.2", "3.6.0", "0.3.1"),
)
INSTALL = "pip install 'seqjax[gpu]'"


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "3.6.0+git" is (3, 6, 0)."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)


def judge(
    jaxlib: str | None, triton: str | None, jax_triton: str | None, route: str
) -> str | None:
    """Why these releases do not launch kernels by `route`, or None."""
    if triton is None:
        return f"Triton is not installed; {INSTALL}"
    if numbers(triton)[:2] != (3, 6):
        # 3.7 and newer write PTX that the ptxas of CUDA 13.0 refuses.
        return (
            f"kernels are written for Triton 3.6, got {triton}; {INSTALL}"
            " brings it"
        )
    if route == "interpret":
        return None
    if jaxlib is None or numbers(jaxlib) < (0, 10, 2):
        return f"kernels need jaxlib 0.10.2 or newer, got {jaxlib}"
    if route == "jax_triton":
        if jax_triton is None:
            return f"jax-triton is not installed; {INSTALL}"
        if numbers(jax_triton)[:2] != (0, 3) or jax_triton == "0.3.0":
            # 0.4 needs Triton 3.7 or newer.
            return (
                f"with Triton {triton} jax-triton must be 0.3.1, got"
                f" {jax_triton}; {INSTALL} brings it"
            )
    return None


@functools.cache
def fault(route: str) -> str | None:
    """Why what is installed here does not launch kernels by `route`."""
    return judge(
        installed("jaxlib"),
        installed("triton"),
        installed("jax-triton"),
        route,
    )


def check(route: str) -> None:
    """Raises `devices.Unsupported` if `fault` finds one."""
    reason = fault(route)
    if reason is not None:
        raise devices.Unsupported(reason)
