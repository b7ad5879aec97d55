"""State spaces."""

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import linear


def ssd_inputs(rng, B, T, G=2, H=4, P=5, N=6):
    return {
        "x": common.f32(rng.normal(size=(B, T, H, P))),
        "dt": common.f32(np.exp(rng.normal(size=(B, T, H)) - 1)),
        "A": common.f32(-np.exp(rng.normal(size=H) - 1)),
        "B": common.f32(rng.normal(size=(B, T, G, N))),
        "C": common.f32(rng.normal(size=(B, T, G, N))),
        "D": common.f32(rng.normal(size=H)),
    }


def hard_steps(rng, inputs):
    """Steps so short or long that dt A reaches from -1e-6 to -1e4."""
    dt = np.array(inputs["dt"])
    for row, value in enumerate((1e-6, 1e-4, 0.05, 10.0)):
        dt[row] = value
    dt[4] = np.where(rng.random(dt[4].shape) < 0.1, 10.0, 1e-4)
    strong = {"A": common.f32([-1.0, -1e3, -2.0, -0.01]), "dt": common.f32(dt)}
    huge = {"A": common.f32([-1e38, -1e20, -2.0, -0.01])}
    return {"steps": inputs | strong, "huge": inputs | huge}


def ssd_golden(inputs, opts):
    """dt through its softplus and limits; groups and absences filled in."""
    raw = inputs["dt"]
    heads = raw.shape[2]
    biased = raw + inputs.get("dt_bias", 0.0)
    soft = bool(opts["dt_softplus"])
    step = np.logaddexp(biased, 0.0) if soft else biased
    slope = 1 / (1 + np.exp(-biased)) if soft else np.ones_like(biased)
    dt = np.clip(step, opts["dt_min"], opts["dt_max"])
    slope = np.where(dt == step, slope, 0.0)
    groups = inputs["B"].shape[2]
    index = np.arange(heads) // (heads // groups)
    ready = {
        "x": inputs["x"],
        "dt": dt,
        "A": inputs["A"],
        "B": inputs["B"][:, :, index],
        "C": inputs["C"][:, :, index],
        "D": inputs.get("D", np.zeros(heads)),
    }

    def pullback(grads):
        raw_dt = grads["dt"] * slope
        out = grads | {"dt": raw_dt, "dt_bias": raw_dt.sum((0, 1))}
        for name in "BC":
            g = grads[name]
            shape = (*g.shape[:2], groups, heads // groups, g.shape[-1])
            out[name] = g.reshape(shape).sum(3)
        return out

    return ready, pullback


SSD = spec.Operator(
    name="ssd",
    core="gated_linear_attention_scalar",
    function="ssd",
    make_inputs=ssd_inputs,
    oracle=linear.ssd,
    make_state=common.head_state(4, 5, 6),
    parameters=("A", "D"),
    output_like="x",
    hard=hard_steps,
    golden=(
        spec.Golden(
            "mamba2_ssd",
            {n: n for n in ("x", "dt", "A", "B", "C", "D", "dt_bias")},
            output="y",
            variant=lambda operator, inputs, opts: operator,
            prepare=ssd_golden,
        ),
    ),
    faults={
        "heads no multiple of groups": (
            lambda i: i | {n: np.repeat(i[n], 2, 2)[:, :, :3] for n in "BC"},
            "B",
            "3",
        ),
        "groups of B and C differ": (
            lambda i: i | {"C": i["C"][:, :, :1]},
            "C",
            "1",
        ),
        "one A too few": (lambda i: i | {"A": i["A"][:3]}, "A", "3"),
        "D of the wrong rank": (
            lambda i: i | {"D": i["D"][:, None]},
            "D",
            "4, 1",
        ),
    },
)
