"""A Triton kernel becomes a call inside `jax.jit`.

One function, three routes:

    direct      jaxlib's own Triton call, the default. It is a call of XLA's
                newer interface, the only one that CUDA graphs may hold, takes
                absent inputs, and from jaxlib 0.11.2 on its PTX is checked
                when a program is compiled, with or without a GPU.
    jax_triton  jax-triton 0.3.1, which is none of that. No GPU was at hand to
                time the two; `python -m benchmarks.gpu` compares them.
    interpret   Triton's interpreter on the CPU, every access checked; for
                processes that start with TRITON_INTERPRET=1, and then the only
                one.

A kernel's arguments are the inputs' pointers in order, the outputs' pointers in
order, then constexpr arguments by name. Sizes are constants, so a kernel is
compiled for each shape. An absent optional input is None among the inputs and a
constexpr None in the kernel. A kernel writes each cell of its outputs once and
reads none; it computes in float32, and multiplies what it loaded as it is.

A module with kernels says `import triton` at its top, below the line
`# pyright: reportMissingImports=false`; so it is imported inside the function
that launches it: whoever has no Triton must be able to import everything else.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
import os
from typing import NamedTuple

import jax
import numpy as np

from seqjax_kernels import _direct
from seqjax_kernels import _interpret
from seqjax_kernels import _jax_triton
from seqjax_kernels import _varying
from seqjax_kernels import _versions
from seqjax_kernels import devices

LAUNCHERS = ("direct", "jax_triton", "interpret")
# CUDA's limit for the second and third axis of a grid.
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)


class Launch(NamedTuple):
    """A launch that was traced: what is compiled, and over which grid."""

    program: _direct.Program
    grid: tuple[int, int, int]


_recorded: list[Launch] | None = None


def call(
    kernel,
    *inputs: jax.Array | None,
    outputs: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, int, int],
    constants: Mapping[str, int | float | bool | str | None],
    num_warps: int = 4,
    num_stages: int = 2,
    launcher: str | None = None,
) -> tuple[jax.Array, ...]:
    """Launches a kernel over a grid, for the GPU that is traced for.

    Under `jax.vmap` the launches follow one another; fold the axis into the
    batch where that matters (`batching.fold`).

    Args:
      kernel: a function under `triton.jit`.
      *inputs: arrays, or None where the kernel does without.
      outputs: shape and dtype of each array it writes.
      grid: programs along each axis; the last two at most 65535.
      constants: the constexpr arguments by name.
      num_warps: warps of a block.
      num_stages: depth of software pipelining.
      launcher: one of `LAUNCHERS`, or None for the default.

    Returns:
      The outputs.

    Raises:
      ValueError: arguments that do not fit the kernel or the grid.
      devices.Unsupported: a ValueError too: no Triton, releases that do not
        work together, no NVIDIA GPU, or one that is too old.
    """
    route = _route(launcher)
    outputs = tuple(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in outputs)
    names = _names(kernel, len(inputs) + len(outputs), constants)
    grid = _checked_grid(kernel, grid)
    given = dict(zip(names, inputs, strict=False))
    made = dict(zip(names[len(inputs) :], outputs, strict=False))
    if math.prod(grid) == 0:
        if any(math.prod(o.shape) for o in outputs):
            raise ValueError(
                f"{_name(kernel)}: grid is {grid}, and outputs are not empty"
            )
        results = [jax.numpy.zeros(o.shape, o.dtype) for o in outputs]
        return _varying.like(results, inputs)
    pointers = tuple(
        (name, _direct.dtype_name(array.dtype))
        for name, array in (given | made).items()
        if array is not None
    )
    if route == "interpret":
        results = _interpreted(kernel, grid, given, made, constants)
        return _varying.like(results, inputs)
    _, arch = devices.meant()
    absent = {name: None for name, array in given.items() if array is None}
    program = _direct.Program(
        kernel,
        pointers,
        (*constants.items(), *absent.items()),
        num_warps,
        num_stages,
        arch,
    )
    if _recorded is not None:
        _recorded.append(Launch(program, grid))
        return tuple(jax.numpy.empty(o.shape, o.dtype) for o in outputs)
    arrays = [array for array in inputs if array is not None]
    launch = _direct.launch if route == "direct" else _jax_triton.launch
    return _varying.like(launch(program, arrays, outputs, grid), inputs)


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Collects the launches that are traced, instead of making them.

    What they would return is empty memory, so this is for `jax.eval_shape`.
    """
    global _recorded
    if _recorded is not None:
        raise RuntimeError("launches are being recorded already")
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def interpreting() -> bool:
    """True in a process whose Triton interprets kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true")


def why_not(launcher: str | None = None) -> str | None:
    """Why no kernel can be launched here, or None.

    Args:
      launcher: one of `LAUNCHERS`, or None for the default.
    """
    try:
        if _route(launcher) != "interpret":
            devices.meant()
    except ValueError as error:
        return str(error)
    return None


def _route(launcher: str | None) -> str:
    route = launcher
    if launcher is None:
        route = "interpret" if interpreting() else "direct"
    if route not in LAUNCHERS:
        raise ValueError(
            f"launcher must be one of {', '.join(LAUNCHERS)} or None, got"
            f" {launcher!r}"
        )
    if (route == "interpret") != interpreting():
        raise ValueError(
            f"launcher is {launcher!r}, and TRITON_INTERPRET is"
            f" {os.environ.get('TRITON_INTERPRET')!r}: Triton either interprets"
            " every kernel of a process or none; start Python with"
            " TRITON_INTERPRET=1 for 'interpret' and without for the others"
        )
    _versions.check(route)
    return route


def _name(kernel) -> str:
    return kernel.fn.__name__


def _names(kernel, arrays: int, constants) -> list[str]:
    """The kernel's arguments, checked against what is passed."""
    names = list(kernel.arg_names)
    missing = [n for n in names[arrays:] if n not in constants]
    unknown = [n for n in constants if n not in names[arrays:]]
    if len(names) < arrays or missing or unknown:
        raise ValueError(
            f"{_name(kernel)} has the arguments {', '.join(names)}; got"
            f" {arrays} arrays for the first of them and the constants"
            f" {', '.join(constants)}: missing {missing}, unknown {unknown}"
        )
    return names


def _checked_grid(kernel, grid) -> tuple[int, int, int]:
    blocks = tuple(int(n) for n in grid)
    if len(blocks) != 3 or any(
        not 0 <= n <= most for n, most in zip(blocks, _MOST_BLOCKS, strict=True)
    ):
        raise ValueError(
            f"{_name(kernel)}: grid must be three numbers of at most"
            f" {_MOST_BLOCKS}, got {grid}"
        )
    return blocks


def _interpreted(kernel, grid, given, made, constants):
    """The launch as a callback of the compiled program to this process."""
    present = [name for name, array in given.items() if array is not None]

    def host(*arrays):
        inputs = dict(given)
        for name, array in zip(present, arrays, strict=True):
            inputs[name] = np.asarray(array)
        done = _interpret.run(kernel, grid, inputs, made, dict(constants))
        return tuple(done.values())

    return tuple(
        jax.pure_callback(
            host,
            tuple(made.values()),
            *(given[name] for name in present),
            vmap_method="sequential",
        )
    )
