r"""Operators on one CUDA GPU: kernels, plain JAX, and peers, in one process.

    python -m benchmarks.gpu --out=results.json
    python -m benchmarks.gpu --ops=gla,ssd --seconds=120

First correctness: each kernel against float64 on the host, at a short shape.
Then speed, T from 256 to 131072 and a decode step, bfloat16: fwd is y alone,
both is y and all gradients, medians of many batches of calls over inputs that
take turns in more memory than the cache holds. roof: the least possible time
(bytes over the measured bandwidth, or FLOPs over the measured matmul rate) over
this one's. ratio: the peer's time over this one's, the peer being
flash-linear-attention through torch where it is installed, else plain JAX.
Softmax attention (cuDNN's through JAX, torch's) stands beside as a line. A last
block times one small kernel through each launcher. Without a GPU it refuses.
"""

from collections.abc import Callable, Sequence
import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import _gpu_peers
from seqjax.ops import _dispatch
from seqjax.training import provenance
from seqjax_kernels import launch
from seqjax_kernels.pointwise import norm

EXIT_NO_GPU = 2
_SHORT = _gpu_cases.Shape(1, 320, 2, 64)
_LAUNCHED = ("direct", "jax_triton")
_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "triton",
    "jax-triton",
    "torch",
    "flash-linear-attention",
)

Row = _gpu_measure.Row


def why_not() -> str | None:
    """Why this machine cannot run the benchmark, or None."""
    reason = launch.why_not()
    if reason is None and launch.interpreting():
        reason = "TRITON_INTERPRET is set: kernels would run on the CPU"
    if reason is None:
        return None
    return (
        f"benchmarks.gpu needs a CUDA GPU. {reason}. Kernels are tested without"
        " one by `make test-kernels`."
    )


def about(roofline: _gpu_measure.Roofline) -> dict[str, Any]:
    """Where and with what the table was made, for its JSON file."""
    return {
        "device": jax.devices()[0].device_kind,
        "commit": provenance.git_hash(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "bandwidth": roofline.bandwidth,
        "flops": roofline.flops,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def measure_roofline() -> _gpu_measure.Roofline:
    """Bytes a second of a copy, FLOPs a second of a bfloat16 product."""
    size = 2**28
    x = jnp.zeros(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(x).compile()
    seconds = _time(copy, [(x,)]) / 1e3
    bandwidth = 2 * 4 * size / seconds
    a = jnp.ones((8192, 8192), jnp.bfloat16)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return _gpu_measure.Roofline(
        bandwidth, 2 * 8192**3 / (_time(product, [(a, a)]) / 1e3)
    )


def _time(compiled, inputs: list[tuple]) -> float:
    return _gpu_measure.median_ms(
        lambda i: compiled(*inputs[i % len(inputs)]), jax.block_until_ready
    )


def _compiled(run: Callable, inputs: Sequence[Any]):
    start = time.perf_counter()
    program = jax.jit(run).lower(*inputs).compile()
    return program, time.perf_counter() - start


def errors(case: _gpu_cases.Case, implementation: str) -> float:
    """Largest error against float64 on the host, over the largest value."""
    arrays = _gpu_cases.make_inputs(case, _SHORT, seed=0)
    kinds = {n: k for n, (_, k) in _gpu_cases.shapes_of(case, _SHORT).items()}
    given = {
        n: jnp.asarray(a, _gpu_cases.dtype_of(kinds[n]))
        for n, a in arrays.items()
    }
    found = np.asarray(
        jax.jit(lambda **a: case.run(a, implementation)[0])(**given),
        np.float64,
    )
    with (
        jax.enable_x64(True),
        jax.default_device(jax.local_devices(backend="cpu")[0]),
    ):
        wide = {n: np.asarray(a, np.float64) for n, a in arrays.items()}
        y, _ = case.run(jax.tree.map(jnp.asarray, wide), "xla")
        exact = np.asarray(y)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def measure(
    case: _gpu_cases.Case,
    shape: _gpu_cases.Shape,
    implementation: str,
    roofline: _gpu_measure.Roofline,
) -> Row:
    """One operator in JAX at one shape."""
    kinds = _gpu_cases.shapes_of(case, shape)
    arrays = _gpu_cases.make_inputs(case, shape, seed=1)
    total = sum(a.nbytes for a in arrays.values())
    inputs = [
        tuple(
            jnp.asarray(arrays[n], _gpu_cases.dtype_of(kind))
            for n, (_, kind) in kinds.items()
        )
        for _ in range(_gpu_measure.copies(total / 2))
    ]

    def forward(*given) -> Any:
        made = case.run(dict(zip(kinds, given, strict=True)), implementation)
        return made if shape.length == 1 else made[0]

    def both(*given):
        y, back = jax.vjp(forward, *given)
        return back(jnp.ones_like(y))

    program, seconds = _compiled(forward, inputs[0])
    forward_ms = _time(program, inputs)
    row = Row(
        case.name,
        str(shape),
        implementation,
        forward_ms,
        forward_roofline=_share(case, shape, False, roofline, forward_ms),
        compile_seconds=seconds,
    )
    if shape.length == 1:  # decode
        return row
    program, more = _compiled(both, inputs[0])
    both_ms = _time(program, inputs)
    memory = program.memory_analysis()
    return row._replace(
        both_ms=both_ms,
        both_roofline=_share(case, shape, True, roofline, both_ms),
        compile_seconds=seconds + more,
        temporary_mib=memory.temp_size_in_bytes / 2**20,
    )


def _share(case, shape, both, roofline, milliseconds) -> float:
    least = roofline.milliseconds(
        _gpu_cases.moved_bytes(case, shape, both),
        _gpu_cases.needed_flops(case, shape, both),
    )
    return least / milliseconds


def measure_peer(
    operator: str, peer: str, arrays: dict[str, np.ndarray], kinds, shape
) -> Row:
    """A peer through torch at one shape."""
    contender = "sdpa" if peer == "sdpa" else "fla"
    row = Row(operator, str(shape), contender)
    reason = _gpu_peers.why_not(peer)
    if reason is not None:
        return row._replace(note=reason)
    tokens = {n for n, (_, kind) in kinds.items() if kind == "token"}
    total = sum(a.nbytes for a in arrays.values())
    copies = [
        _gpu_peers.tensors(arrays, tokens)
        for _ in range(_gpu_measure.copies(total / 2))
    ]
    forward, both, wait = _gpu_peers.starts(peer, copies)
    return row._replace(
        forward_ms=_gpu_measure.median_ms(forward, wait),
        both_ms=_gpu_measure.median_ms(both, wait),
    )


def measure_softmax(shape: _gpu_cases.Shape) -> list[Row]:
    """Causal softmax attention of others, as a line to compare with."""
    case = _gpu_cases.Case(
        "softmax",
        lambda a, how: (_cudnn(**a), None),
        _gpu_cases.tokens,
        lambda s: 0.0,
    )
    rows = []
    infinite = _gpu_measure.Roofline(float("inf"), float("inf"))
    rows.append(_tried(measure, case, shape, "cudnn", infinite))
    arrays = _gpu_cases.make_inputs(case, shape, seed=1)
    kinds = case.shapes(shape)
    rows.append(_tried(measure_peer, "softmax", "sdpa", arrays, kinds, shape))
    return [r._replace(forward_roofline=None, both_roofline=None) for r in rows]


def _cudnn(q, k, v):
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, implementation="cudnn"
    )


def measure_launchers() -> list[Row]:
    """One kernel of a few microseconds, through each launcher."""
    shape = _gpu_cases.Shape(1, 256, 16, 128)
    x = jnp.ones(shape, jnp.bfloat16)
    weight = jnp.ones(shape.width, jnp.float32)
    rows = []
    for launcher in _LAUNCHED:

        def run(x, weight, launcher=launcher):
            for _ in range(8):  # a program that a CUDA graph would hold
                x = norm.gated_rms_norm(x, x, weight, launcher=launcher)
            return x

        def timed(run=run, launcher=launcher):
            program, seconds = _compiled(run, (x, weight))
            return Row(
                "8 gated norms",
                str(shape),
                launcher,
                _time(program, [(x, weight)]),
                compile_seconds=seconds,
            )

        rows.append(_tried(timed, name="8 gated norms", by=launcher))
    return rows


def _tried(function, *args, name: str = "", by: str = "") -> Row:
    """A row, or one that says why there is none: memory, or a refusal."""
    try:
        return function(*args)
    except Exception as error:  # one row must not cost all others
        case, shape = (args + ("", ""))[:2]
        return Row(
            name or getattr(case, "name", str(case)),
            str(shape),
            by or next((a for a in args[2:] if isinstance(a, str)), ""),
            note=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}",
        )


def run(
    names: Sequence[str], seconds: float, path: pathlib.Path | None
) -> list[Row]:
    """Measures within a time, prints the table last, writes JSON as it goes."""
    end = time.monotonic() + seconds
    roofline = measure_roofline()
    rows: list[Row] = []

    def add(new: Sequence[Row]) -> None:
        rows.extend(new)
        for row in new:
            print(_gpu_measure.lines([row])[1], flush=True)
        if path is not None:
            data = {
                "about": about(roofline),
                "rows": [r._asdict() for r in _rated(rows)],
            }
            path.write_text(json.dumps(data, indent=1) + "\n")

    cases = [c for c in _gpu_cases.CASES if c.name in names]
    for case in cases:
        for how in _implementations(case.name):
            row = Row(case.name, str(_SHORT), how)
            found = _tried(
                lambda c=case, h=how, r=row: r._replace(error=errors(c, h)),
                name=case.name,
                by=how,
            )
            add([found])
    add(measure_launchers())
    for shape in (*_gpu_cases.SHAPES, _gpu_cases.DECODE):
        if shape.length > 1:
            add(measure_softmax(shape))
        for case in cases:
            if time.monotonic() > end:
                add([Row(case.name, str(shape), "-", note="out of time")])
                continue
            for how in _implementations(case.name, decode=shape.length == 1):
                add([_tried(measure, case, shape, how, roofline)])
            if case.peer is not None and shape.length > 1:
                arrays = _gpu_cases.make_inputs(case, shape, seed=1)
                kinds = case.shapes(shape)
                add(
                    [
                        _tried(
                            measure_peer,
                            case.name,
                            case.peer,
                            arrays,
                            kinds,
                            shape,
                        )  # fmt: skip
                    ]
                )
    rows = _rated(rows)
    print("\n".join(_gpu_measure.lines(rows)))
    for peer in ("fla", "xla"):
        rated = _gpu_measure.with_ratios(rows, peer)
        values = [r.ratio for r in rated if r.contender == "triton" and r.ratio]
        mean = _gpu_measure.geometric_mean(values)
        if mean is not None:
            print(f"kernels over {peer}, geometric mean: {mean:.2f}")
    return rows


def _rated(rows: list[Row]) -> list[Row]:
    """Ratios to flash-linear-attention; where it is absent, to plain JAX."""
    rated = _gpu_measure.with_ratios(rows, "xla")
    better = _gpu_measure.with_ratios(rows, "fla")
    return [
        b if b.ratio is not None else r
        for r, b in zip(rated, better, strict=True)
    ]


def _implementations(name: str, decode: bool = False) -> tuple[str, ...]:
    """The kernel, if the operator has one, and plain JAX.

    Kernels of the additive rule are of the chunk form, and have no step.
    """
    if decode and name != "short_convolution":
        return ("xla",)
    function = "gated_linear_attention" if "gla" in name else name
    table = _dispatch.IMPLEMENTATIONS[function]
    return tuple(n for n in ("triton", "xla") if n in table)


_OPS = flags.DEFINE_list(
    "ops", [c.name for c in _gpu_cases.CASES], "Operators, by name."
)
_SECONDS = flags.DEFINE_float("seconds", 420.0, "Time for the speed rows.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: Sequence[str]) -> None:
    """Refuses, or measures."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]}")
    known = [c.name for c in _gpu_cases.CASES]
    unknown = [n for n in _OPS.value if n not in known]
    if unknown:
        raise app.UsageError(
            f"--ops: unknown {', '.join(unknown)}; known are {', '.join(known)}"
        )
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_NO_GPU)
    path = None if _OUT.value is None else pathlib.Path(_OUT.value)
    run(_OPS.value, _SECONDS.value, path)


if __name__ == "__main__":
    app.run(main)
