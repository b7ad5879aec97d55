"""Linear attention, retention, lightning attention, scalar gates."""

import functools

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import linear


def positive_qkv(rng, B, T):
    """Positive features, as a normalised operator needs them."""
    inputs = common.qkv(rng, B, T)
    return inputs | {n: common.f32(np.abs(inputs[n]) + 0.1) for n in "qk"}


def hard_constants(rng, inputs):
    """Every hard gate, four heads at a time."""
    del rng
    return {
        "weak": inputs | {"log_decay": common.f32([0.0, -1e-6, -0.05, -1.0])},
        "strong": inputs
        | {"log_decay": common.f32([-np.inf, -1e4, -20.0, -0.05])},
        "huge": inputs
        | {"log_decay": common.f32([-1e38, -3e38, -0.05, -1e-6])},
    }


LINEAR_ATTENTION = spec.Operator(
    name="linear_attention",
    core="gated_linear_attention_scalar",
    function="linear_attention",
    make_inputs=common.qkv,
    oracle=linear.linear_attention,
    make_state=common.head_state(4, 6, 5),
    hard=common.equal_keys,
    golden=(spec.Golden("linear_attn", {"q": "q", "k": "k", "v": "v"}),),
    faults=common.QKV_FAULTS,
)

NORMALISED = spec.Operator(
    name="linear_attention_normalised",
    core="gated_linear_attention_scalar",
    function="linear_attention",
    options={"normalize": True},
    make_inputs=positive_qkv,
    oracle=linear.normalised_linear_attention,
    make_state=lambda rng, B: (
        common.f32(rng.normal(size=(B, 4, 6, 5))),
        common.f32(np.abs(rng.normal(size=(B, 4, 6)))),
    ),
    hard=common.equal_keys,
    golden=(
        spec.Golden(
            "linear_attn_normalised",
            {"q": "q", "k": "k", "v": "v"},
            initial=("h0", "z0"),
            final=("ht", "zt"),
        ),
    ),
    faults=common.QKV_FAULTS,
)


def constant_decay_inputs(rng, B, T):
    decay = common.f32([-0.02, -0.3, -0.005, -1.5])
    return common.qkv(rng, B, T) | {"log_decay": decay}


RETENTION = spec.Operator(
    name="retention",
    core="gated_linear_attention_scalar",
    function="retention",
    make_inputs=constant_decay_inputs,
    oracle=linear.constant_decay,
    make_state=common.head_state(4, 6, 5),
    parameters=("log_decay",),
    hard=hard_constants,
    golden=(
        spec.Golden(
            "retention",
            {"q": "q", "k": "k", "v": "v", "g_head": "log_decay"},
        ),
    ),
    faults=common.DECAY_FAULTS,
)


def slopes_to_decay(inputs, opts):
    inputs = inputs | {
        "q": inputs["q"] * opts["scale"],
        "log_decay": -inputs["log_decay"],
    }
    return inputs, lambda grads: grads | {"q": grads["q"] * opts["scale"]}


LIGHTNING = spec.Operator(
    name="lightning_attention",
    core="gated_linear_attention_scalar",
    function="lightning_attention",
    make_inputs=constant_decay_inputs,
    oracle=functools.partial(linear.constant_decay, scale=1.0),
    make_state=common.head_state(4, 6, 5),
    parameters=("log_decay",),
    hard=hard_constants,
    golden=(
        spec.Golden(
            "lightning",
            {"q": "q", "k": "k", "v": "v", "slope": "log_decay"},
            prepare=slopes_to_decay,
        ),
    ),
    faults=common.DECAY_FAULTS,
)


def scalar_gate_inputs(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, T, 4)) - 2)
    return common.qkv(rng, B, T) | {"log_decay": common.f32(decay)}


def one_gate_for_all_tokens(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, 1, 4)) - 2)
    return common.qkv(rng, B, T) | {"log_decay": common.f32(decay)}


GATED = spec.Operator(
    name="gated_linear_attention_scalar",
    function="gated_linear_attention",
    make_inputs=scalar_gate_inputs,
    oracle=linear.gated_linear_attention,
    make_state=common.head_state(4, 6, 5),
    replicated=one_gate_for_all_tokens,
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "simple_gla", {"q": "q", "k": "k", "v": "v", "g": "log_decay"}
        ),
    ),
    faults=common.DECAY_FAULTS,
)
