"""Elementwise recurrences."""

import numpy as np

from seqjax import ops
from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import elementwise


def recurrence_inputs(rng, B, T, D=6):
    return {
        "x": common.f32(rng.normal(size=(B, T, D))),
        "log_decay": common.f32(-np.exp(rng.normal(size=(B, T, D)) - 2)),
    }


def one_decay_for_all_tokens(rng, B, T):
    inputs = recurrence_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


RECURRENCE_FAULTS = {
    "one decay too few": (
        lambda i: i | {"log_decay": i["log_decay"][..., :5]},
        "log_decay",
        "5, 5",
    ),
}

LINEAR_RECURRENCE = spec.Operator(
    name="linear_recurrence",
    function="linear_recurrence",
    make_inputs=recurrence_inputs,
    oracle=elementwise.linear_recurrence,
    make_state=common.head_state(6),
    output_like="x",
    lengths=(1, 2, 65, 130, 257),
    chunk_sizes=(16, 64),
    replicated=one_decay_for_all_tokens,
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "hgrn",
            {"x": "x", "g": "log_decay"},
            variant=lambda operator, inputs, opts: operator,
            prepare=lambda inputs, opts: (inputs, lambda grads: grads),
        ),
    ),
    faults=RECURRENCE_FAULTS,
)


def c64(x, y):
    return np.asarray(x + 1j * y, np.complex64)


def complex_inputs(rng, B, T, D=(2, 3)):
    """Trailing axes of more than one; phases all around the circle."""

    def normal():
        return rng.normal(size=(B, T, *D))

    return {
        "x": c64(normal(), normal()),
        "log_decay": c64(-np.exp(normal() - 2), 2 * normal()),
    }


def complex_state(rng, B):
    return c64(rng.normal(size=(B, 2, 3)), rng.normal(size=(B, 2, 3)))


def hard_complex_gates(rng, inputs):
    gates = inputs["log_decay"]
    real = common.hard_gates(rng, {"log_decay": gates.real})["gates"]
    hard = c64(0.0, gates.imag)
    hard.real = real["log_decay"]  # -inf + 1j * y would be NaN
    return {"gates": inputs | {"log_decay": hard}}


COMPLEX_RECURRENCE = spec.Operator(
    name="linear_recurrence_complex",
    core="linear_recurrence",
    function="linear_recurrence",
    make_inputs=complex_inputs,
    oracle=elementwise.linear_recurrence,
    make_state=complex_state,
    output_like="x",
    complex_inputs=True,
    lengths=(1, 65, 130),
    chunk_sizes=(16, 64),
    table_lengths=(),
    hard=hard_complex_gates,
)


def scan_inputs(rng, B, T, G=2, D=6, N=5):
    return {
        "x": common.f32(rng.normal(size=(B, T, D))),
        "dt": common.f32(np.exp(rng.normal(size=(B, T, D)) - 1)),
        "A": common.f32(-np.exp(rng.normal(size=(D, N)) - 1)),
        "B": common.f32(rng.normal(size=(B, T, G, N))),
        "C": common.f32(rng.normal(size=(B, T, G, N))),
        "D": common.f32(rng.normal(size=D)),
    }


def hard_steps(rng, inputs):
    """Steps so short or long that dt A reaches from -1e-9 to -1e4."""
    dt = np.array(inputs["dt"])
    for row, value in enumerate((1e-6, 1e-4, 0.05, 10.0)):
        dt[row] = value
    dt[4] = np.where(rng.random(dt[4].shape) < 0.1, 10.0, 1e-4)
    A = np.resize([-1.0, -1e3, -2.0, -0.01, -1e-3], inputs["A"].shape)
    return {"steps": inputs | {"A": common.f32(A), "dt": common.f32(dt)}}


def scan_golden(inputs, opts):
    """The step through its softplus; groups and absences filled in."""
    channels = inputs["x"].shape[2]
    biased = inputs["dt"] + inputs.get("dt_bias", 0.0)
    soft = bool(opts["delta_softplus"])
    groups = inputs["B"].shape[2]
    index = np.arange(channels) // (channels // groups)
    ready = {
        "x": inputs["x"],
        "dt": np.logaddexp(biased, 0.0) if soft else biased,
        "A": inputs["A"],
        "B": inputs["B"][:, :, index],
        "C": inputs["C"][:, :, index],
        "D": inputs.get("D", np.zeros(channels)),
    }

    def pullback(grads):
        slope = 1 / (1 + np.exp(-biased)) if soft else 1.0
        dt = grads["dt"] * slope
        out = grads | {"dt": dt, "dt_bias": dt.sum((0, 1))}
        for name in "BC":
            g = grads[name]
            shape = (*g.shape[:2], groups, -1, g.shape[-1])
            out[name] = g.reshape(shape).sum(3)
        return out

    return ready, pullback


SELECTIVE_SCAN = spec.Operator(
    name="selective_scan",
    function="selective_scan",
    make_inputs=scan_inputs,
    oracle=elementwise.selective_scan,
    make_state=common.head_state(6, 5),
    parameters=("A", "D"),
    output_like="x",
    lengths=(1, 2, 65, 130, 257),
    chunk_sizes=(16, 64, 128),
    hard=hard_steps,
    golden=(
        spec.Golden(
            "mamba1_scan",
            {
                "u": "x",
                "delta": "dt",
                "delta_bias": "dt_bias",
                **{n: n for n in "ABCD"},
            },
            output="y",
            # the others have an output gate: tests/ops/test_selective_scan.py
            cases=("tiny", "t1", "t65", "strong", "weak"),
            variant=lambda operator, inputs, opts: operator,
            prepare=scan_golden,
        ),
    ),
    faults={
        "channels no multiple of groups": (
            lambda i: i | {n: np.repeat(i[n], 2, 2) for n in "BC"},
            "B",
            "4",
        ),
        "groups of B and C differ": (
            lambda i: i | {"C": i["C"][:, :, :1]},
            "C",
            "1",
        ),
        "A transposed": (lambda i: i | {"A": i["A"].T}, "A", "5, 6"),
        "one D too few": (lambda i: i | {"D": i["D"][:5]}, "D", "5"),
    },
)


def average_inputs(rng, B, T, D=6):
    return {
        "k": common.f32(rng.normal(size=(B, T, D))),
        "v": common.f32(rng.normal(size=(B, T, D))),
        "log_decay": common.f32(-np.exp(rng.normal(size=D) - 2)),
        "bonus": common.f32(rng.normal(size=D)),
    }


def average_state(rng, B):
    return ops.RWKV4State(
        common.f32(rng.normal(size=(B, 6))),
        common.f32(np.exp(rng.normal(size=(B, 6)))),
        common.f32(rng.normal(size=(B, 6))),
    )


def empty_average(B):
    zeros = np.zeros((B, 6), np.float32)
    return ops.RWKV4State(zeros, zeros, np.full_like(zeros, -np.inf))


def hard_weights(rng, inputs):
    """Weights of exp(±300), decays from none to total."""
    k = np.array(inputs["k"])
    k[0] *= 300
    k[1] = np.linspace(0, -300, k.shape[1])[:, None]
    k[2] = np.linspace(-300, 300, k.shape[1])[:, None]
    k[3] += 30 * (rng.random(k[3].shape) < 0.05)
    decay = common.f32([0.0, -1e-6, -0.05, -20.0, -1e4, -np.inf])
    return {"weights": inputs | {"k": common.f32(k), "log_decay": decay}}


def average_golden(inputs, opts):
    decay = -np.exp(inputs["time_decay"])

    def pullback(grads):
        return grads | {"time_decay": grads["log_decay"] * decay}

    ready = {n: inputs[n] for n in ("k", "v", "bonus")}
    return ready | {"log_decay": decay}, pullback


RWKV4 = spec.Operator(
    name="rwkv4",
    function="rwkv4",
    make_inputs=average_inputs,
    oracle=elementwise.rwkv4,
    make_state=average_state,
    empty_state=empty_average,
    parameters=("log_decay", "bonus"),
    lengths=(1, 2, 65, 130, 257),
    chunk_sizes=(16, 64, 128),
    hard=hard_weights,
    golden=(
        spec.Golden(
            "rwkv4",
            {
                "k": "k",
                "v": "v",
                "time_decay": "time_decay",
                "time_first": "bonus",
            },
            initial=("num0", "den0", "max0"),
            final=("numt", "dent", "maxt"),
            absent=(0.0, 0.0, -1e38),
            variant=lambda operator, inputs, opts: operator,
            prepare=average_golden,
        ),
    ),
    faults={
        "widths of k and v differ": (
            lambda i: i | {"v": i["v"][..., :5]},
            "v",
            "5",
        ),
        "one decay too few": (
            lambda i: i | {"log_decay": i["log_decay"][:5]},
            "log_decay",
            "5",
        ),
        "a bonus a token": (
            lambda i: i | {"bonus": i["k"]},
            "bonus",
            "6",
        ),
    },
)
