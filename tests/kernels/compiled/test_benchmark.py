"""Every row of the GPU benchmark compiles for an H200, and fits in memory."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _gpu_cases
from benchmarks import _gpu_rows
from benchmarks import _gpu_workers
from benchmarks import gpu
from seqjax_kernels import _direct
from tests.kernels.compiled import h200

# Of the smallest GPU that the kernels have a table for; torch needs some too.
MEMORY = 40 * 2**30
FULL = "1x131072x16x128"  # the shape whose rows run by default
# By name, with one gate: launches forward, and forward with gradients; where
# the state is carried in parts there is one more for each pass over chunks.
KERNELS = {
    "short_convolution": (1, 2),
    "gated_rms_norm": (1, 2),
    "gla": (3, 6),
}


def cells():
    for shape in (*_gpu_cases.SHAPES, _gpu_cases.DECODE):
        for case in _gpu_cases.CASES:
            for how in gpu.implementations(case, shape.length == 1):
                name = f"{case.name}-{shape}-{how}"
                marks = []
                if how == "xla" or str(shape) != FULL:
                    marks = [pytest.mark.full]
                yield pytest.param(case, shape, how, id=name, marks=marks)


@pytest.mark.parametrize(("case", "shape", "how"), list(cells()))
def test_row(case, shape, how):
    forward, both = _gpu_cases.functions(case, shape, how)
    given = _gpu_cases.structs(case, shape)
    costs = [h200.cost(h200.compile_for(forward, *given))]
    if shape.length > 1:
        out = _gpu_cases.out_shape(case, shape)
        y_bar = jax.ShapeDtypeStruct(out, jnp.bfloat16)
        costs.append(h200.cost(h200.compile_for(both, y_bar, *given)))
    for cost in costs:
        total = cost.temporary + cost.arguments + cost.outputs
        assert total < MEMORY, cost
        print(case.name, shape, how, cost)
    if how != "triton":
        assert all(c.kernels == 0 for c in costs)
        return
    # Two passes over chunks with gradients, and each may be carried in parts.
    expected = KERNELS.get(case.name, (2, 5))
    for passes, (cost, least) in enumerate(
        zip(costs, expected, strict=False), start=1
    ):
        more = 0 if expected == (1, 2) else passes
        assert least <= cost.kernels <= least + more, cost


def test_workers_leave_kernels_where_they_are_found(tmp_path, monkeypatch):
    """So the process with the GPU compiles none of them."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case, shape = _gpu_cases.named("short_convolution"), (1, 64, 1, 64)
    arguments = case.name, _gpu_cases.Shape(*shape), "NVIDIA H200"
    with _gpu_workers.start(1) as pool:
        seconds = pool.submit(_gpu_workers.compile_kernels, *arguments).result()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    assert seconds > 0 and any(p.suffix == ".ptx" for p in files)
    _direct.compile_program.cache_clear()
    again = _gpu_workers.compile_kernels(*arguments)
    assert again < seconds
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")} == files


def test_programs_of_many_cases():
    """Compiled in threads, each with the device that it is for."""
    cases = [_gpu_cases.named(n) for n in ("linear_attention", "retention")]
    shape = _gpu_cases.Shape(1, 64, 2, 16)
    made = _gpu_rows.compile_all(cases, shape, "xla")
    for case in cases:
        programs = made[case.name].result()
        assert len(programs) == 2 and all(p.seconds > 0 for p in programs)
