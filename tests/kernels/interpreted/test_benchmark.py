"""The GPU benchmark runs from end to end, here at the size of toys."""

from concurrent import futures
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import _gpu_rows
from benchmarks import _gpu_workers
from benchmarks import gpu

# What only a GPU has; rows must say so.
ELSEWHERE = ("fla", "sdpa", "cudnn", "direct", "jax_triton")
NAMES = ["simple_gla", "gla", "ssd", "short_convolution", "gated_rms_norm"]


class Here(futures.Executor):
    """Workers that are not beside; kernels are interpreted, not compiled."""

    def submit(self, function, *args):
        made = futures.Future()
        if function is _gpu_workers.exact:
            made.set_result(function(*args))
        else:
            made.set_exception(RuntimeError("nothing compiles here"))
        return made


@pytest.fixture
def toys(monkeypatch):
    tiny = _gpu_cases.Shape(1, 20, 2, 16)
    monkeypatch.setattr(gpu, "_SHORT", tiny)
    monkeypatch.setattr(_gpu_cases, "SHAPES", (tiny,))
    monkeypatch.setattr(_gpu_cases, "DECODE", tiny._replace(length=1))
    monkeypatch.setattr(
        _gpu_rows,
        "measure_roofline",
        lambda: _gpu_measure.Roofline(1e12, 1e15),
    )
    # No time is spent on kernels that are interpreted: one call.
    monkeypatch.setattr(
        _gpu_rows,
        "timed",
        lambda run, inputs: float(
            jnp.isfinite(
                jax.tree.leaves(jax.block_until_ready(run(*inputs[0])))[0]
            ).all()
        ),
    )
    monkeypatch.setattr(_gpu_measure, "MOST_COPIES", 1)


def test_all_of_it(toys, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    rows = gpu.run(NAMES, 1e6, path, Here)
    ours = [r for r in rows if r.contender not in ELSEWHERE]
    # errors, one shape and a decode step; kernels and plain JAX
    assert [r.note for r in ours if r.note] == []
    assert len(ours) == 5 * 2 * 2 + 3 + 2
    assert [r.contender for r in rows[:10]] == ["triton"] * 10
    assert [r.contender for r in rows[-10:]] == ["xla"] * 10
    for row in ours:
        if row.error is not None:
            assert row.error < 0.03 and row.gradient_error < 0.03, row
            continue
        assert row.forward_ms == 1 and row.forward_roofline is not None
        if not row.shape.startswith("1x1x"):
            assert row.both_ms == 1 and row.peak_mib > row.temporary_mib
    assert all(r.note for r in rows if r.contender in ELSEWHERE)
    saved = json.loads(path.read_text())
    assert len(saved["rows"]) == len(rows)
    assert {"device", "commit", "packages", "bandwidth"} <= set(saved["about"])
    gpu.print_table(rows)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("kernels over xla, geometric mean: 1.00")
    shown = [line.split()[:2] for line in printed]
    assert ["short_convolution", "1x1x2x16"] in shown
    assert shown[-2] == ["gated_rms_norm", "1x20x2x16"]


def test_a_row_that_fails(toys, tmp_path, monkeypatch):
    """Costs only itself; whoever stops the run finds the rows before it."""
    path = tmp_path / "gpu.json"
    seen = []

    def measure(case, shape, how, *rest):
        if path.exists():
            seen.append(len(json.loads(path.read_text())["rows"]))
        if case.name == "ssd":
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory")
        return _gpu_measure.Row(case.name, str(shape), how, 1.0, 2.0)

    def compile_all(cases, shape, how):
        made = {c.name: futures.Future() for c in cases}
        for name, future in made.items():
            if (name, how) == ("short_convolution", "xla"):
                future.set_exception(RuntimeError("no such fusion"))
            else:
                future.set_result([None])
        return made

    monkeypatch.setattr(_gpu_rows, "measure", measure)
    monkeypatch.setattr(_gpu_rows, "compile_all", compile_all)
    rows = gpu.run(["ssd", "short_convolution"], 1e6, path, Here)
    failed = {
        (r.operator, r.contender): r.note
        for r in rows
        if r.shape == "1x20x2x16" and r.error is None
    }
    assert failed["ssd", "triton"].startswith("MemoryError: RESOURCE_EXHAUSTED")
    assert failed["short_convolution", "triton"] == ""
    assert failed["short_convolution", "xla"] == "RuntimeError: no such fusion"
    assert seen == sorted(seen) and seen[:2] == [2, 3]
    assert len(json.loads(path.read_text())["rows"]) == len(rows)
    # Where it leaves CUDA unusable, another process goes on behind it.
    names = ["ssd", "short_convolution"]
    with monkeypatch.context() as broken:
        broken.setattr(_gpu_rows, "usable", lambda: False)
        with pytest.raises(gpu.Broken):
            gpu.run(names, 1e6, path, Here)
    first = json.loads(path.read_text())
    assert "now" not in first and first["rows"][-1]["note"]
    assert len(first["rows"]) == 1
    again = gpu.run(names, 1e6, path, Here, resume=True)
    assert [r.note for r in again] == [r.note for r in rows]


def test_no_row_is_begun_too_late(toys, tmp_path):
    path = tmp_path / "gpu.json"
    rows = gpu.run(NAMES, -1.0, path, Here)
    assert {r.note for r in rows} == {"out of time"} and len(rows) > 20
    assert len(json.loads(path.read_text())["rows"]) == len(rows)
