"""The GPU benchmark refuses without a GPU; its arithmetic is right."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import _gpu_cases
from benchmarks import _gpu_measure
from benchmarks import _gpu_peers
from benchmarks import _gpu_rows
from benchmarks import _gpu_watch
from benchmarks import gpu
from benchmarks import report
from tests import _tree

Row = _gpu_measure.Row
SHAPE = _gpu_cases.Shape(2, 128, 4, 32)
CASES = {case.name: case for case in _gpu_cases.CASES}


def test_it_refuses_without_a_gpu():
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(_tree.ROOT), str(_tree.ROOT / "kernels")]
        )
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.gpu"],
        cwd=_tree.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == gpu.EXIT_NO_GPU
    assert done.stderr.startswith("benchmarks.gpu needs a CUDA GPU. ")
    assert "make test-kernels" in done.stderr and not done.stdout


class Clock:
    """A clock that only calls move on."""

    def __init__(self, seconds_of):
        self.now, self.seconds_of, self.calls = 0.0, seconds_of, 0

    def start(self, i):
        self.now += self.seconds_of(self.calls)
        self.calls += 1
        return i

    def __call__(self):
        return self.now


def test_medians():
    """One slow batch of many changes nothing."""
    clock = Clock(lambda call: 1.0 if call == 20 else 0.004)
    found = _gpu_measure.median_ms(
        clock.start, lambda _: None, repeats=9, seconds=1e9, clock=clock
    )
    assert found == pytest.approx(4)
    clock = Clock(lambda call: 2.0)
    assert _gpu_measure.median_ms(
        clock.start, lambda _: None, seconds=1, clock=clock
    ) == pytest.approx(2000)
    assert clock.calls == 3 + 1 + 3


@pytest.mark.parametrize(
    ("size", "count"), [(2**20, 16), (2**26, 4), (2**30, 1), (0, 16)]
)
def test_inputs_take_turns(size, count):
    assert _gpu_measure.copies(size) == count


def test_roofline():
    roofline = _gpu_measure.Roofline(bandwidth=1e12, flops=1e15)
    assert roofline.milliseconds(1e9, 1e9) == pytest.approx(1)
    assert roofline.milliseconds(1e6, 1e12) == pytest.approx(1)


def test_bytes_and_flops():
    tokens = 2 * 128 * 4 * 32
    plain, gated = CASES["linear_attention"], CASES["simple_gla"]
    assert _gpu_cases.moved_bytes(plain, SHAPE, False) == 4 * 2 * tokens
    assert _gpu_cases.moved_bytes(plain, SHAPE, True) == (4 + 7) * 2 * tokens
    more = _gpu_cases.moved_bytes(gated, SHAPE, False) - 8 * tokens
    assert more == 4 * 2 * 128 * 4  # float32 gates
    assert _gpu_cases.needed_flops(plain, SHAPE, False) == (
        2 * tokens * (64 + 64 + 32 + 32)
    )
    assert _gpu_cases.needed_flops(CASES["short_convolution"], SHAPE, True) == 0


@pytest.mark.parametrize("name", CASES)
def test_cases_run(name):
    case, shape = CASES[name], _gpu_cases.Shape(1, 8, 2, 4)
    arrays = _gpu_cases.make_inputs(case, shape, seed=0)
    kinds = {n: k for n, (_, k) in case.shapes(shape).items()}
    assert list(arrays) == list(kinds)
    y, state = case.run(arrays, "xla")
    assert y.size == 1 * 8 * 2 * 4 and np.isfinite(np.asarray(y)).all()
    assert y.shape == _gpu_cases.out_shape(case, shape)
    assert (arrays.get("log_decay", np.zeros(1)) <= 0).all()
    assert "xla" in gpu.implementations(case)
    for array, struct in zip(
        arrays.values(), _gpu_cases.structs(case, shape), strict=True
    ):
        assert (array.shape, array.dtype) == (struct.shape, struct.dtype)
    # Cases of a shape share their arrays.
    again = _gpu_cases.make_inputs(case, shape, seed=0)
    assert all(again[n] is arrays[n] for n in arrays)
    if not case.state:
        assert state is None and not gpu.implementations(case, decode=True)
        return
    # A decode step reads and writes a state.
    step = shape._replace(length=1)
    arrays = _gpu_cases.make_inputs(case, step, seed=0)
    _, state = case.run(arrays, "xla")
    assert state.shape == arrays["initial_state"].shape
    state_bytes = arrays["initial_state"].nbytes
    assert _gpu_cases.moved_bytes(case, step, False) > 2 * state_bytes


def test_ratios():
    rows = [
        Row("gla", "a", "fla", forward_ms=2.0, both_ms=6.0),
        Row("gla", "a", "triton", forward_ms=1.0, both_ms=4.0),
        Row("gla", "a", "xla", forward_ms=1.0, both_ms=12.0),
        Row("ssd", "a", "triton", forward_ms=1.0, both_ms=4.0),
        Row("ssd", "a", "xla", forward_ms=1.0, both_ms=10.0),
        Row("gla", "b", "fla", note="no torch"),
        Row("gla", "b", "triton", forward_ms=1.0),
    ]
    ratios = [r.ratio for r in gpu._rated(rows)]
    assert ratios[1] == 1.5 and ratios[2] == 0.5 and ratios[3] == 2.5
    assert ratios[5] is None and ratios[6] is None
    assert _gpu_measure.geometric_mean([1.5, 6.0]) == pytest.approx(3)
    assert _gpu_measure.geometric_mean([]) is None


def test_lines():
    row = Row("gla", "1x2x3x4", "triton", 1.5, 4.0, 0.5, None, 2.0, 8.0, 9.0)
    header, line, other = _gpu_measure.lines(
        [row, Row("gla", "1x2x3x4", "fla", note="no torch")]
    )
    assert len(header) == len(line) and line.split()[3:5] == ["1.500", "50%"]
    assert other.endswith("  no torch")


def test_peers_say_why_not():
    for peer in ("gla", "sdpa", *_gpu_peers.PEERS):
        reason = _gpu_peers.why_not(peer)
        assert reason is None or "torch" in reason or "fla" in reason
    assert _gpu_peers.why_not("ssd") == "flash-linear-attention has none"
    assert "step" in (_gpu_peers.why_not("short_convolution", True) or "")


class Stand:
    """What `_gpu_peers` needs of torch and of flash-linear-attention, in numpy.

    The functions check how they are called, and return y = k + v.
    """

    def __init__(self, monkeypatch, old):
        self.called = []

        def chunk_simple_gla(q, k, v, g=None, scale=None, head_first=old):
            self.called.append(dict(g=g, head_first=head_first))
            return k + v, None

        def causal_conv1d(x, weight, bias=None, activation=None):
            self.called.append(dict(weight=weight, activation=activation))
            return 2 * x, None

        modules = {
            "torch": self,
            "fla.ops.simple_gla": types.SimpleNamespace(
                chunk_simple_gla=chunk_simple_gla,
                fused_recurrent_simple_gla=self.step,
            ),
            "fla.modules.convolution": types.SimpleNamespace(
                causal_conv1d=causal_conv1d
            ),
        }

        def find(name):
            if name not in modules:
                raise ModuleNotFoundError(name)
            return modules[name]

        monkeypatch.setattr(_gpu_peers.importlib, "import_module", find)
        monkeypatch.setattr(_gpu_peers, "tensor", lambda a: Tensor(a))
        self.cuda = types.SimpleNamespace(is_available=lambda: True)
        self.autograd = types.SimpleNamespace(
            grad=lambda y, given, bar: [a * 0 + 1 for a in given]
        )

    def step(self, q, k, v, g, initial_state, output_final_state):
        assert output_final_state
        return k + v, initial_state


class Tensor(np.ndarray):
    """An array that answers as a tensor would."""

    def __new__(cls, array):
        return np.asarray(array, np.float32).view(cls)

    def same(self):
        return self

    requires_grad_ = detach = float = cpu = same

    def numpy(self):
        return np.asarray(self)


@pytest.mark.parametrize("old", [False, True])
def test_peers_are_called_as_they_are_declared(monkeypatch, old):
    stand = Stand(monkeypatch, old)
    case, shape = CASES["simple_gla"], _gpu_cases.Shape(1, 8, 2, 4)
    arrays = _gpu_cases.make_inputs(case, shape, seed=0)
    assert _gpu_peers.why_not("simple_gla") is None
    bar = _gpu_cases.make_bar(case, shape)
    y, *bars = _gpu_peers.values("simple_gla", arrays, bar)
    np.testing.assert_array_equal(
        y, arrays["k"].astype(np.float32) + arrays["v"].astype(np.float32)
    )
    assert [b.shape for b in bars] == [a.shape for a in arrays.values()]
    (called,) = stand.called
    np.testing.assert_array_equal(called["g"], arrays["log_decay"])
    assert called["head_first"] is False
    step = _gpu_cases.make_inputs(case, shape._replace(length=1), seed=0)
    _, state = _gpu_peers.call("simple_gla", True)(**_gpu_peers.tensors(step))
    np.testing.assert_array_equal(state, step["initial_state"])


def test_the_peer_of_the_convolution_has_its_weight_transposed(monkeypatch):
    stand = Stand(monkeypatch, False)
    case, shape = CASES["short_convolution"], _gpu_cases.Shape(1, 8, 2, 4)
    arrays = _gpu_cases.make_inputs(case, shape, seed=0)
    bar = _gpu_cases.make_bar(case, shape)
    *_, weight_bar = _gpu_peers.values("short_convolution", arrays, bar)
    (called,) = stand.called
    assert called["activation"] == "silu" and called["weight"].shape == (8, 4)
    np.testing.assert_array_equal(called["weight"].T, arrays["weight"])
    assert weight_bar.shape == arrays["weight"].shape


def test_a_cotangent_is_exact_in_bfloat16():
    case = CASES["gla"]
    bar = _gpu_cases.make_bar(case, SHAPE)
    assert bar.shape == SHAPE and bar.dtype == "bfloat16"
    assert sorted(np.unique(bar.astype(np.float64) * 64)) == list(
        range(-32, 32)
    )


def test_a_failing_row_costs_only_itself():
    def fails():
        raise RuntimeError("out of memory\nwith details")

    row = _gpu_rows.tried(fails, otherwise=Row("gla", "a", "triton"))
    assert row.note == "RuntimeError: out of memory"
    assert (row.operator, row.contender) == ("gla", "triton")


MEASURES = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
row = dict(operator="gla", shape="a", contender="triton")
resumed = "--resume" in sys.argv
rows = json.loads(path.read_text())["rows"] if resumed else []
def write(**more):
    path.write_text(json.dumps(dict(about={}, rows=rows) | more))
"""
DIES = """
if len(rows) < 3:
    rows.append(row | dict(forward_ms=1.0))
    write(now=row)
    import os
    os.kill(os.getpid(), 11)
rows.append(row)
write()
"""
BREAKS = """
rows.append(row | dict(note="illegal address"))
write()
sys.exit(3 if len(rows) < 2 else 0)
"""
HANGS = """
write(now=row)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("does", "code", "notes"),
    [
        (DIES, 0, ["", "its process ended with -11"] * 2 + [""]),
        (BREAKS, 0, ["illegal address"] * 2),
        (HANGS, 0, ["out of time"]),
        ("sys.exit(2)", 2, ["of before"]),
        ("write(); sys.exit(1)", 1, []),
    ],
    ids=["dies", "breaks", "hangs", "refuses", "fails"],
)
def test_a_process_that_breaks(does, code, notes, tmp_path):
    path = tmp_path / "gpu.json"
    _gpu_watch.write(path, {}, [Row("gla", "a", "fla", note="of before")])
    script = tmp_path / "measures.py"
    script.write_text(MEASURES + does)
    command = [sys.executable, str(script), str(path)]
    assert _gpu_watch.watch(command, path, 1.0, grace=1.0) == code
    assert [r.note for r in _gpu_watch.read(path)] == notes
    assert "now" not in path.read_text()


def test_the_last_table_is_short():
    rows = [
        Row("gla", "a", "triton", error=1e-3),
        Row("gla", "a", "triton", 1.0, 4.0, 0.5, 0.25),
        Row("gla", "a", "fla", 2.0, 6.0),
        Row("gla", "a", "xla", note="out of time"),
        Row("gla", "b", "triton", note="out of memory"),
        Row("gla", "b", "xla", 2.0, 8.0),
        Row("gla", "1", "xla", 0.5, forward_roofline=0.75),
        Row("gla", "1", "fla", 1.0),
    ]
    _, first, step = _gpu_measure.summary(rows)
    assert (
        first.split()
        == ["gla", "a", "4.000", "25%", "6.000", "1.50"] + ["-"] * 2
    )
    assert step.split()[:6] == ["gla", "1", "0.500", "75%", "1.000", "2.00"]


def test_figures(tmp_path):
    rows = [
        Row("gla", "1x8x2x4", "triton", 1.0, 3.0),
        Row("gla", "1x8x2x4", "xla", 2.0, 9.0),
        Row("gla", "1x1x2x4", "xla", 0.5),
        Row("gla", "1x8x2x4", "fla", note="no torch"),
    ]
    found = report.times([r._asdict() for r in rows])
    assert found == {
        "gla": {
            "triton": {"1x8x2x4": 3.0},
            "xla": {"1x8x2x4": 9, "1x1x2x4": 0.5},
        }
    }
    path = tmp_path / "gla.png"
    report.draw("gla", found["gla"], "a GPU", path)
    assert path.read_bytes().startswith(b"\x89PNG")
