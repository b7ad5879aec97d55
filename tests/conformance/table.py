"""The operators under test, one row each."""

import dataclasses
import functools

import numpy as np

from tests.conformance import spec
from tests.oracles import convolution
from tests.oracles import linear

# Gates of each row of a board: no decay, almost none, strong, total, and one
# overwhelming gate among weak ones, which a plain cumulative sum cannot carry.
HARD_GATES = (0.0, -1e-6, -20.0, -1e4, -np.inf)


def f32(x):
    return np.asarray(x, np.float32)


def head_state(*shape):
    """make_state for one array [B, *shape]."""
    return lambda rng, B: f32(rng.normal(size=(B, *shape)))


def qkv(rng, B, T, Hk=2, H=4, K=6, V=5):
    """Grouped heads, K and V unequal and no powers of two."""
    return {
        "q": f32(rng.normal(size=(B, T, Hk, K))),
        "k": f32(rng.normal(size=(B, T, Hk, K))),
        "v": f32(rng.normal(size=(B, T, H, V))),
    }


def positive_qkv(rng, B, T):
    """Positive features, as a normalised operator needs them."""
    inputs = qkv(rng, B, T)
    return inputs | {n: f32(np.abs(inputs[n]) + 0.1) for n in "qk"}


def hard_gates(rng, inputs, name="log_decay"):
    """One problem whose rows are the hard gates, the last three mixed."""
    gate = np.array(inputs[name])
    for row, value in enumerate(HARD_GATES):
        gate[row] = value
    shape = gate[0].shape
    gate[5] = np.where(rng.random(shape) < 0.1, -1e4, -0.05)
    gate[6] = np.where(rng.random(shape) < 0.3, -20.0, -8 * rng.random(shape))
    gate[7] = np.where(rng.random(shape) < 0.5, -np.inf, -1e-6)
    return {"gates": inputs | {name: f32(gate)}}


def hard_constants(rng, inputs):
    """Every hard gate, four heads at a time."""
    del rng
    return {
        "weak": inputs | {"log_decay": f32([0.0, -1e-6, -0.05, -1.0])},
        "strong": inputs | {"log_decay": f32([-np.inf, -1e4, -20.0, -0.05])},
    }


def equal_keys(rng, inputs):
    """All keys equal, nearly parallel, or orthogonal and repeating."""
    k = inputs["k"]
    one = np.broadcast_to(k[:, :1], k.shape)
    basis = np.eye(k.shape[-1])[np.arange(k.shape[1]) % k.shape[-1]]
    return {
        "keys equal": inputs | {"k": f32(one)},
        "keys parallel": inputs
        | {"k": f32(one + 1e-3 * rng.normal(size=k.shape))},
        "keys orthogonal": inputs
        | {"k": f32(np.broadcast_to(basis[None, :, None], k.shape))},
    }


def wrong_heads(name, heads=3):
    """A fault: `name` with a number of heads that divides nothing here."""

    def change(inputs):
        x = inputs[name]
        x = np.repeat(x, heads, 2)[:, :, :heads]
        return inputs | {name: x}

    return change


QKV_FAULTS = {
    "value heads no multiple of key heads": (wrong_heads("v"), "v", "3"),
    "q and k heads differ": (wrong_heads("k"), "k", "3"),
    "key width differs": (
        lambda i: i | {"k": np.concatenate([i["k"], i["k"]], -1)},
        "k",
        "12",
    ),
}


# --- linear attention -------------------------------------------------------

LINEAR_ATTENTION = spec.Operator(
    name="linear_attention",
    function="linear_attention",
    make_inputs=qkv,
    oracle=linear.linear_attention,
    make_state=head_state(4, 6, 5),
    hard=equal_keys,
    golden=(
        spec.Golden("linear_attn", {"q": "q", "k": "k", "v": "v"}),
    ),
    faults=QKV_FAULTS,
)

NORMALISED = spec.Operator(
    name="linear_attention_normalised",
    function="linear_attention",
    options={"normalize": True},
    make_inputs=positive_qkv,
    oracle=linear.normalised_linear_attention,
    make_state=lambda rng, B: (
        f32(rng.normal(size=(B, 4, 6, 5))),
        f32(np.abs(rng.normal(size=(B, 4, 6)))),
    ),
    hard=equal_keys,
    golden=(
        spec.Golden(
            "linear_attn_normalised",
            {"q": "q", "k": "k", "v": "v"},
            initial=("h0", "z0"),
            final=("ht", "zt"),
        ),
    ),
    faults=QKV_FAULTS,
)

# --- constant decay ---------------------------------------------------------


def constant_decay_inputs(rng, B, T):
    decay = f32([-0.02, -0.3, -0.005, -1.5])
    return qkv(rng, B, T) | {"log_decay": decay}


DECAY_FAULTS = QKV_FAULTS | {
    "one decay too few": (
        lambda i: i | {"log_decay": i["log_decay"][..., :3]},
        "log_decay",
        "3",
    ),
}

RETENTION = spec.Operator(
    name="retention",
    function="retention",
    make_inputs=constant_decay_inputs,
    oracle=linear.constant_decay,
    make_state=head_state(4, 6, 5),
    parameters=("log_decay",),
    hard=hard_constants,
    golden=(
        spec.Golden(
            "retention",
            {"q": "q", "k": "k", "v": "v", "g_head": "log_decay"},
        ),
    ),
    faults=DECAY_FAULTS,
)


def slopes_to_decay(inputs, opts):
    inputs = inputs | {
        "q": inputs["q"] * opts["scale"],
        "log_decay": -inputs["log_decay"],
    }
    return inputs, lambda grads: grads | {"q": grads["q"] * opts["scale"]}


LIGHTNING = spec.Operator(
    name="lightning_attention",
    function="lightning_attention",
    make_inputs=constant_decay_inputs,
    oracle=functools.partial(linear.constant_decay, scale=1.0),
    make_state=head_state(4, 6, 5),
    parameters=("log_decay",),
    hard=hard_constants,
    golden=(
        spec.Golden(
            "lightning",
            {"q": "q", "k": "k", "v": "v", "slope": "log_decay"},
            prepare=slopes_to_decay,
        ),
    ),
    faults=DECAY_FAULTS,
)

# --- scalar gates -----------------------------------------------------------


def scalar_gate_inputs(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, T, 4)) - 2)
    return qkv(rng, B, T) | {"log_decay": f32(decay)}


def one_gate_for_all_tokens(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, 1, 4)) - 2)
    return qkv(rng, B, T) | {"log_decay": f32(decay)}


GATED = spec.Operator(
    name="gated_linear_attention_scalar",
    function="gated_linear_attention",
    make_inputs=scalar_gate_inputs,
    oracle=linear.gated_linear_attention,
    make_state=head_state(4, 6, 5),
    replicated=one_gate_for_all_tokens,
    hard=hard_gates,
    golden=(
        spec.Golden(
            "simple_gla", {"q": "q", "k": "k", "v": "v", "g": "log_decay"}
        ),
    ),
    faults=DECAY_FAULTS,
)

# --- state spaces -----------------------------------------------------------


def ssd_inputs(rng, B, T, G=2, H=4, P=5, N=6):
    return {
        "x": f32(rng.normal(size=(B, T, H, P))),
        "dt": f32(np.exp(rng.normal(size=(B, T, H)) - 1)),
        "A": f32(-np.exp(rng.normal(size=H) - 1)),
        "B": f32(rng.normal(size=(B, T, G, N))),
        "C": f32(rng.normal(size=(B, T, G, N))),
        "D": f32(rng.normal(size=H)),
    }


def hard_steps(rng, inputs):
    """Steps so short or long that dt A reaches from -1e-6 to -1e4."""
    dt = np.array(inputs["dt"])
    for row, value in enumerate((1e-6, 1e-4, 0.05, 10.0)):
        dt[row] = value
    dt[4] = np.where(rng.random(dt[4].shape) < 0.1, 10.0, 1e-4)
    strong = {"A": f32([-1.0, -1e3, -2.0, -0.01]), "dt": f32(dt)}
    return {"steps": inputs | strong}


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
    function="ssd",
    make_inputs=ssd_inputs,
    oracle=linear.ssd,
    make_state=head_state(4, 5, 6),
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

# --- short convolution ------------------------------------------------------


def convolution_inputs(rng, B, T, D=6, W=4):
    return {
        "x": f32(rng.normal(size=(B, T, D))),
        "weight": f32(rng.normal(size=(W, D))),
        "bias": f32(rng.normal(size=D)),
    }


def convolution_golden(inputs, opts):
    bias = inputs.get("bias", np.zeros(inputs["x"].shape[-1]))
    ready = inputs | {"weight": inputs["weight"].T, "bias": bias}
    return ready, lambda grads: grads | {"weight": grads["weight"].T}


@functools.cache
def with_activation(operator, activation, width):
    del width  # part of the cache key: another width is another program
    activation = None if activation == "none" else activation
    return dataclasses.replace(
        operator,
        options={"activation": activation},
        oracle=functools.partial(
            convolution.short_convolution, activation=activation
        ),
    )


def convolution_variant(operator, inputs, opts):
    width = inputs["weight"].shape[1]
    return with_activation(operator, str(opts["activation"]), width)


CONVOLUTION = spec.Operator(
    name="short_convolution",
    function="short_convolution",
    options={"activation": "silu"},
    make_inputs=convolution_inputs,
    oracle=functools.partial(
        convolution.short_convolution, activation="silu"
    ),
    make_state=head_state(3, 6),
    parameters=("weight", "bias"),
    output_like="x",
    forms=(),
    golden=(
        spec.Golden(
            "short_conv",
            {n: n for n in ("x", "weight", "bias")},
            output="y",
            initial=("state0",),
            final=("statet",),
            variant=convolution_variant,
            prepare=convolution_golden,
        ),
    ),
    faults={
        "weight of another width": (
            lambda i: i | {"weight": i["weight"][:, :5]},
            "weight",
            "4, 5",
        ),
        "weight transposed": (
            lambda i: i | {"weight": i["weight"].T},
            "weight",
            "6, 4",
        ),
        "bias of another width": (
            lambda i: i | {"bias": i["bias"][:5]},
            "bias",
            "5",
        ),
    },
)

OPERATORS = (
    LINEAR_ATTENTION,
    NORMALISED,
    RETENTION,
    LIGHTNING,
    GATED,
    SSD,
    CONVOLUTION,
)
