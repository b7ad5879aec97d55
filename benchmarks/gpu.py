r"""Operators on one CUDA GPU: kernels, plain JAX, and peers, in one process.

    python -m benchmarks.gpu --out=results.json
    python -m benchmarks.gpu --ops=gla,ssd --seconds=120

First correctness: y and all gradients against float64 on the host, at a short
shape.  Then speed, T from 256 to 131072 and a decode step, bfloat16: fwd is y
alone, both is y and all gradients, medians of many batches of calls over inputs
that take turns in more memory than the cache holds.  roof: the least possible
time (bytes over the measured bandwidth, or FLOPs over the measured matmul rate)
over this one's.  ratio: the peer's time over this one's, the peer being
flash-linear-attention through torch where it is installed, else plain JAX.
Softmax attention (cuDNN's through JAX, torch's) stands beside as a line, and
one small kernel is timed through each launcher.

Rows come in the order of what they tell: kernels, peers, plain JAX.  Each is in
the file as soon as it is made, and what there is no time left for says so.  One
that fails holds the reason, and costs no other: where it leaves CUDA unusable,
another process goes on.  Kernels are compiled in processes beside it.  Without
a GPU it refuses.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import functools
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import jax

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import _gpu_rows
from benchmarks import _gpu_watch
from benchmarks import _gpu_workers
from seqjax.ops import _dispatch
from seqjax.training import provenance
from seqjax_kernels import launch

EXIT_NO_GPU = 2
_SHORT = _gpu_cases.Shape(1, 320, 2, 64)
_SEED = 0
_QUIET_AFTER = 60.0  # seconds in which all kernels should be compiled
_PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "triton",
    "jax-triton",
    "torch",
    "flash-linear-attention",
)

Case = _gpu_cases.Case
Row = _gpu_measure.Row
Shape = _gpu_cases.Shape
# A row to make, and what it is where it cannot be made.
Job = tuple[Callable[[], Row], Row]


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


def implementations(case: Case, decode: bool = False) -> tuple[str, ...]:
    """The kernel, if the operator has one, and plain JAX.

    Kernels of the additive rule are of the chunk form, and have no step; what
    has no state has none at all.
    """
    if decode and not case.state:
        return ()
    if decode and case.name != "short_convolution":
        return ("xla",)
    name = case.name
    function = "gated_linear_attention" if "gla" in name else name
    table = _dispatch.IMPLEMENTATIONS[function]
    return tuple(n for n in ("triton", "xla") if n in table)


class Bench:
    """The rows of some cases, as jobs in order."""

    def __init__(
        self,
        cases: Sequence[Case],
        roofline: _gpu_measure.Roofline,
        pool: futures.Executor,
        end: float,
    ):
        """Starts what needs no GPU; at `end` nothing is waited for any more."""
        self._cases, self._roofline, self._end = cases, roofline, end
        self._quiet = time.monotonic() + _QUIET_AFTER
        self._made: dict[Any, dict[str, futures.Future]] = {}
        kind = jax.devices()[0].device_kind
        self._exact = {
            c.name: pool.submit(_gpu_workers.exact, c.name, _SHORT, _SEED)
            for c in cases
        }
        self._kernels = {
            (c.name, shape): pool.submit(
                _gpu_workers.compile_kernels, c.name, shape, kind
            )
            for shape in (_SHORT, *_gpu_cases.SHAPES, _gpu_cases.DECODE)
            for c in cases
            if "triton" in implementations(c, shape.length == 1)
        }

    def jobs(self) -> list[Job]:
        """All rows, those that tell most first."""
        shapes, decode = _gpu_cases.SHAPES, _gpu_cases.DECODE
        made = self._ours("triton")
        for case in self._cases:
            for how in implementations(case, decode=True):
                made.append(self._job(self._measure, case, decode, how))
        for launcher in _gpu_rows.LAUNCHERS:
            run = functools.partial(_gpu_rows.measure_launcher, launcher)
            made.append((run, Row("8 gated norms", "1x256x16x128", launcher)))
        for case in self._cases:
            made.append(self._job(self._errors, case, _SHORT, "fla"))
        for shape in (*shapes, decode):
            cases = [c for c in self._cases if c.state or shape != decode]
            made += [self._peer(case, shape) for case in cases]
        for shape in shapes:
            run = functools.partial(_gpu_rows.measure_cudnn, shape)
            made.append((run, Row("softmax", str(shape), "cudnn")))
            made.append(self._peer(_gpu_rows.SOFTMAX, shape, "sdpa"))
        return made + self._ours("xla")

    def _ours(self, how) -> list[Job]:
        made = [self._job(self._errors, c, _SHORT, how) for c in self._cases]
        for shape in _gpu_cases.SHAPES:
            for case in self._cases:
                made.append(self._job(self._measure, case, shape, how))
        return made

    def _job(self, function, case, shape, how) -> Job:
        run = functools.partial(function, case, shape, how)
        return run, Row(case.name, str(shape), how)

    def _peer(self, case, shape, name="") -> Job:
        run = functools.partial(
            _gpu_rows.measure_peer, name or case.name, case, shape
        )
        return run, Row(case.name, str(shape), name or "fla")

    def _errors(self, case, shape, how) -> Row:
        exact = self._exact[case.name].result()
        program = None
        if how != "fla":
            program = self._programs(case, shape, how)[-1]
        return _gpu_rows.errors(case, shape, how, exact, _SEED, program)

    def _measure(self, case, shape, how) -> Row:
        # What compiles beside it would take time from what is timed.
        futures.wait(self._kernels.values(), _until(self._quiet))
        made = self._programs(case, shape, how)
        seconds = 0.0
        kernels = self._kernels.get((case.name, shape))
        if how == "triton" and kernels.done() and not kernels.exception():
            seconds = kernels.result()
        return _gpu_rows.measure(
            case, shape, how, self._roofline, made, seconds
        )

    def _programs(self, case, shape, how) -> list[_gpu_rows.Program]:
        """Of a case; those of all cases at a shape are compiled together."""
        key = shape, how
        if key not in self._made:
            step = shape.length == 1
            cases = [c for c in self._cases if how in implementations(c, step)]
            if how == "triton":
                # Where their worker failed they are compiled here.
                waited = [self._kernels[c.name, shape] for c in cases]
                futures.wait(waited, _until(self._end))
            made = _gpu_rows.compile_all(cases, shape, how)
            self._made[key] = made
            futures.wait(made.values(), _until(self._end))
        return self._made[key][case.name].result(0)


def _until(end: float) -> float:
    """Seconds that are left."""
    return max(0.0, end - time.monotonic())


def run(
    names: Sequence[str],
    seconds: float,
    path: pathlib.Path,
    workers: Callable[[], futures.Executor] = _gpu_workers.start,
    resume: bool = False,
) -> list[Row]:
    """Measures, and writes as it goes.

    Args:
      names: of the cases.
      seconds: in which rows are begun.
      path: of the file of results.
      workers: starts what compiles beside.
      resume: go on behind the rows of the file.

    Returns:
      All rows.

    Raises:
      Broken: no row can be made any more in this process.
    """
    end = time.monotonic() + seconds
    cases = [c for c in _gpu_cases.CASES if c.name in names]
    rows = _gpu_watch.read(path) if resume else []
    pool = workers()
    try:
        roofline = _gpu_rows.measure_roofline()
        head = about(roofline)
        bench = Bench(cases, roofline, pool, end)
        for make, otherwise in bench.jobs()[len(rows) :]:
            if time.monotonic() > end:
                row = otherwise._replace(note="out of time")
            else:
                _gpu_watch.write(path, head, _rated(rows), otherwise)
                row = _gpu_rows.tried(make, otherwise=otherwise)
                print(_gpu_measure.lines([row])[1], flush=True)
            rows.append(row)
            _gpu_watch.write(path, head, _rated(rows))
            if row.note and not _gpu_rows.usable():
                raise Broken(row.note)
    finally:
        pool.shutdown(cancel_futures=True)
    return _rated(rows)


class Broken(RuntimeError):
    """CUDA is unusable in this process."""


def print_table(rows: Sequence[Row]) -> None:
    """A short one, and geometric means."""
    print("\n".join(_gpu_measure.summary(rows)))
    for peer in ("fla", "xla"):
        rated = _gpu_measure.with_ratios(rows, peer)
        values = [r.ratio for r in rated if r.contender == "triton" and r.ratio]
        mean = _gpu_measure.geometric_mean(values)
        if mean is not None:
            print(f"kernels over {peer}, geometric mean: {mean:.2f}")


def _rated(rows: list[Row]) -> list[Row]:
    """Ratios to flash-linear-attention; where it is absent, to plain JAX."""
    rated = _gpu_measure.with_ratios(rows, "xla")
    better = _gpu_measure.with_ratios(rows, "fla")
    return [
        b if b.ratio is not None else r
        for r, b in zip(rated, better, strict=True)
    ]


_OPS = flags.DEFINE_list(
    "ops", [c.name for c in _gpu_cases.CASES], "Operators, by name."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 420.0, "No row is begun after this many seconds."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
_WATCH = flags.DEFINE_bool(
    "watch", True, "Measure in a process of its own, and in another if it dies."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "With --nowatch: go on behind the rows of --out."
)


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
    if _WATCH.value or _OUT.value is None:
        sys.exit(_watched(_OPS.value, _SECONDS.value, _OUT.value))
    # Else JAX takes most of the memory for itself, and torch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(EXIT_NO_GPU)
    code = 0
    try:
        run(
            _OPS.value,
            _SECONDS.value,
            pathlib.Path(_OUT.value),
            resume=_RESUME.value,
        )
    except Broken:
        code = _gpu_watch.EXIT_BROKEN
    sys.stdout.flush()
    os._exit(code)  # else it waits for compilations that came too late


def _watched(names: Sequence[str], seconds: float, out: str | None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(out or pathlib.Path(folder) / "gpu.json")
        before = _gpu_watch.stamp(path)
        command = [sys.executable, "-m", "benchmarks.gpu", "--nowatch"]
        command += [f"--ops={','.join(names)}", f"--out={path}"]
        code = _gpu_watch.watch(command, path, seconds)
        if _gpu_watch.stamp(path) != before:
            print_table(_gpu_watch.read(path))
        return code


if __name__ == "__main__":
    app.run(main)
