"""Rows of the GPU benchmark: one contender's error or times at one shape."""

from collections.abc import Callable, Sequence
from concurrent import futures
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import _gpu_peers
from seqjax_kernels.pointwise import norm

Row = _gpu_measure.Row
LAUNCHERS = ("direct", "jax_triton")


class Program(NamedTuple):
    """A compiled function and the seconds it took to compile."""

    run: Any
    seconds: float


def compiled(function: Callable, inputs: Sequence[Any]) -> Program:
    """Compiles a function of arrays or their shapes for the GPU."""
    start = time.perf_counter()
    run = jax.jit(function).lower(*inputs).compile()
    return Program(run, time.perf_counter() - start)


def programs(
    case: _gpu_cases.Case, shape: _gpu_cases.Shape, how: str
) -> list[Program]:
    """Forward and, but for a decode step, forward with gradients."""
    forward, both = _gpu_cases.functions(case, shape, how)
    given = _gpu_cases.structs(case, shape)
    made = [compiled(forward, given)]
    if shape.length > 1:
        out = _gpu_cases.out_shape(case, shape)
        made.append(
            compiled(both, [jax.ShapeDtypeStruct(out, jnp.bfloat16), *given])
        )
    return made


def compile_all(
    cases: Sequence[_gpu_cases.Case], shape: _gpu_cases.Shape, how: str
) -> dict[str, futures.Future]:
    """Programs of many cases, by name.

    XLA compiles many at a time; Triton, whose kernels are compiled already, is
    asked by one thread.
    """
    threads = 1 if how == "triton" else min(8, os.cpu_count() or 1)
    pool = futures.ThreadPoolExecutor(threads)
    made = {c.name: pool.submit(programs, c, shape, how) for c in cases}
    pool.shutdown(wait=False)
    return made


def measure_roofline() -> _gpu_measure.Roofline:
    """Bytes a second of a copy, FLOPs a second of a bfloat16 product."""
    size = 2**28
    x = jnp.zeros(size, jnp.float32)
    copy = compiled(lambda x: x + 1, [x]).run
    seconds = timed(copy, [(x,)]) / 1e3
    bandwidth = 2 * 4 * size / seconds
    # Products of ones take less power, and so a faster clock.
    a = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    product = compiled(jnp.matmul, [a, a]).run
    return _gpu_measure.Roofline(
        bandwidth, 2 * 8192**3 / (timed(product, [(a, a)]) / 1e3)
    )


def timed(run: Callable, inputs: list[tuple]) -> float:
    """Milliseconds of a call."""
    return _gpu_measure.median_ms(
        lambda i: run(*inputs[i % len(inputs)]), jax.block_until_ready
    )


def _apart(found: Sequence[Any], exact: Sequence[np.ndarray]) -> list[float]:
    """Largest error of each array over its largest value."""
    return [
        float(np.abs(np.asarray(f, np.float64) - e).max() / np.abs(e).max())
        for f, e in zip(found, exact, strict=True)
    ]


def errors(
    case: _gpu_cases.Case,
    shape: _gpu_cases.Shape,
    contender: str,
    exact: Sequence[np.ndarray],
    seed: int,
    program: Program | None,
) -> Row:
    """Of y and all gradients, against `exact` in float64.

    Args:
      case: the operator.
      shape: of its inputs.
      contender: "triton", "xla" or "fla".
      exact: of `_gpu_workers.exact`.
      seed: of the inputs.
      program: the second of `programs`, None for "fla".
    """
    arrays = _gpu_cases.make_inputs(case, shape, seed)
    y_bar = _gpu_cases.make_bar(case, shape)
    row = Row(case.name, str(shape), contender)
    if program is None:
        reason = _gpu_peers.why_not(case.name)
        if reason is not None:
            return row._replace(note=reason)
        found = _gpu_peers.values(case.name, arrays, y_bar)
    else:
        given = (y_bar, *arrays.values())
        found = program.run(*(jnp.asarray(a) for a in given))
    y, *gradients = _apart(found, exact)
    return row._replace(error=y, gradient_error=max(gradients))


def measure(
    case: _gpu_cases.Case,
    shape: _gpu_cases.Shape,
    how: str,
    roofline: _gpu_measure.Roofline,
    made: Sequence[Program],
    kernel_seconds: float = 0.0,
) -> Row:
    """One operator in JAX at one shape.

    Args:
      case: the operator.
      shape: of its inputs.
      how: its implementation.
      roofline: of the device.
      made: of `programs`.
      kernel_seconds: that kernels took to compile elsewhere.
    """
    arrays = _gpu_cases.make_inputs(case, shape, seed=1)
    total = sum(a.nbytes for a in arrays.values())
    inputs = [
        tuple(jnp.asarray(a) for a in arrays.values())
        for _ in range(_gpu_measure.copies(total))
    ]
    forward_ms = timed(made[0].run, inputs)
    row = Row(
        case.name,
        str(shape),
        how,
        forward_ms,
        forward_roofline=_share(case, shape, False, roofline, forward_ms),
        compile_seconds=kernel_seconds + sum(p.seconds for p in made),
    )
    row = _with_memory(row, made[-1].run)
    if shape.length == 1:
        return row
    y_bar = jnp.asarray(_gpu_cases.make_bar(case, shape))
    both_ms = timed(made[1].run, [(y_bar, *given) for given in inputs])
    return row._replace(
        both_ms=both_ms,
        both_roofline=_share(case, shape, True, roofline, both_ms),
    )


def _with_memory(row: Row, program) -> Row:
    """With that of a program: beside its inputs and outputs, and all of it."""
    memory = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    peak = (
        temporary
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return row._replace(temporary_mib=temporary / 2**20, peak_mib=peak / 2**20)


def _share(case, shape, both, roofline, milliseconds) -> float:
    least = roofline.milliseconds(
        _gpu_cases.moved_bytes(case, shape, both),
        _gpu_cases.needed_flops(case, shape, both),
    )
    return least / milliseconds


def measure_peer(
    name: str, case: _gpu_cases.Case, shape: _gpu_cases.Shape
) -> Row:
    """A peer through torch at one shape, with the arrays of a case.

    Args:
      name: of a case, or "sdpa".
      case: whose arrays these are.
      shape: of the arrays.
    """
    contender = "sdpa" if name == "sdpa" else "fla"
    row = Row(case.name, str(shape), contender)
    step = shape.length == 1
    reason = _gpu_peers.why_not(name, step)
    if reason is not None:
        return row._replace(note=reason)
    arrays = _gpu_cases.make_inputs(case, shape, seed=1)
    total = sum(a.nbytes for a in arrays.values())
    begin = time.perf_counter()
    run = _gpu_peers.starts(
        name,
        [arrays] * _gpu_measure.copies(total),
        _gpu_cases.make_bar(case, shape),
        step,
    )
    tuned = time.perf_counter() - begin
    row = row._replace(
        forward_ms=_gpu_measure.median_ms(run.forward, run.wait),
        compile_seconds=tuned,
    )
    if not step:
        row = row._replace(
            both_ms=_gpu_measure.median_ms(run.both, run.wait),
            peak_mib=run.peak_bytes() / 2**20,
        )
    return row


SOFTMAX = _gpu_cases.Case(
    "softmax",
    lambda arrays, how: (_cudnn(**arrays), None),
    _gpu_cases.tokens,
    lambda shape: 0.0,
)


def _cudnn(q, k, v):
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, implementation="cudnn"
    )


def measure_cudnn(shape: _gpu_cases.Shape) -> Row:
    """Causal softmax attention of cuDNN, as a line to compare with."""
    infinite = _gpu_measure.Roofline(float("inf"), float("inf"))
    made = programs(SOFTMAX, shape, "cudnn")
    row = measure(SOFTMAX, shape, "cudnn", infinite, made)
    return row._replace(forward_roofline=None, both_roofline=None)


def measure_launcher(launcher: str) -> Row:
    """Eight kernels of a few microseconds each, through one launcher."""
    shape = _gpu_cases.Shape(1, 256, 16, 128)
    x = jnp.ones(shape, jnp.bfloat16)
    weight = jnp.ones(shape.width, jnp.float32)

    def run(x, weight):
        for _ in range(8):  # a program that a CUDA graph would hold
            x = norm.gated_rms_norm(x, x, weight, launcher=launcher)
        return x

    program = compiled(run, (x, weight))
    return Row(
        "8 gated norms",
        str(shape),
        launcher,
        timed(program.run, [(x, weight)]),
        compile_seconds=program.seconds,
    )


def tried(function: Callable[..., Row], *args: Any, otherwise: Row) -> Row:
    """A row, or `otherwise` with the reason: memory, or a refusal."""
    try:
        return function(*args)
    except TimeoutError:
        return otherwise._replace(note="out of time")
    except Exception as error:  # one row must not cost all others
        said = str(error).strip().splitlines() or [""]
        return otherwise._replace(
            note=f"{type(error).__name__}: {said[0][:120]}".rstrip(": ")
        )


def usable() -> bool:
    """Whether this process can still compute."""
    try:
        jax.block_until_ready(jnp.arange(8) + 1)
    except Exception:
        return False
    return True
