"""The GPU benchmark runs from end to end, here at the size of toys."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import gpu

# What only a GPU has; rows must say so.
ELSEWHERE = ("fla", "sdpa", "cudnn", "direct", "jax_triton")


@pytest.fixture
def toys(monkeypatch):
    tiny = _gpu_cases.Shape(1, 20, 2, 16)
    monkeypatch.setattr(gpu, "_SHORT", tiny)
    monkeypatch.setattr(_gpu_cases, "SHAPES", (tiny,))
    monkeypatch.setattr(_gpu_cases, "DECODE", tiny._replace(length=1))
    monkeypatch.setattr(
        gpu, "measure_roofline", lambda: _gpu_measure.Roofline(1e12, 1e15)
    )
    # No time is spent on kernels that are interpreted: one call.
    monkeypatch.setattr(
        gpu,
        "_time",
        lambda compiled, inputs: float(
            jnp.isfinite(
                jax.tree.leaves(jax.block_until_ready(compiled(*inputs[0])))[0]
            ).all()
        ),
    )
    monkeypatch.setattr(_gpu_measure, "MOST_COPIES", 1)


def test_all_of_it(toys, tmp_path, capsys):
    names = ["simple_gla", "gla", "ssd", "short_convolution"]
    path = tmp_path / "gpu.json"
    rows = gpu.run(names, 1e6, path)
    ours = [r for r in rows if r.contender not in ELSEWHERE]
    # errors, one shape and a decode step; kernels and plain JAX
    assert [r.note for r in ours if r.note] == []
    assert len(ours) == 4 * 2 * 2 + 3 + 2
    for row in ours:
        if row.error is not None:
            assert row.error < 0.03, row
            continue
        assert row.forward_ms == 1 and row.forward_roofline is not None
        if not row.shape.startswith("1x1x"):
            assert row.both_ms == 1 and row.temporary_mib is not None
    assert all(r.note for r in rows if r.contender in ELSEWHERE)
    saved = json.loads(path.read_text())
    assert len(saved["rows"]) == len(rows)
    assert {"device", "commit", "packages", "bandwidth"} <= set(saved["about"])
    assert "kernels over xla" in capsys.readouterr().out
