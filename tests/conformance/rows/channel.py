"""One gate a key channel: GLA and HGRN2, RWKV-6."""

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import linear


def channel_gate_inputs(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, T, 4, 6)) - 2)
    return common.qkv(rng, B, T) | {"log_decay": common.f32(decay)}


def one_gate_for_all_tokens(rng, B, T):
    inputs = channel_gate_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


def tied_key(inputs, opts):
    """HGRN2: k = 1 - exp(g), and q times the scale."""
    g, scale = inputs["log_decay"], opts["scale"]
    ready = inputs | {"q": scale * inputs["q"], "k": -np.expm1(g)}

    def pullback(grads):
        through_k = grads["log_decay"] - np.exp(g) * grads["k"]
        return grads | {"q": scale * grads["q"], "log_decay": through_k}

    return ready, pullback


GATED = spec.Operator(
    name="gated_linear_attention_channel",
    function="gated_linear_attention",
    make_inputs=channel_gate_inputs,
    oracle=linear.gated_linear_attention,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 2, 15, 65, 130, 257),
    chunk_sizes=(16, 24, 128),
    replicated=one_gate_for_all_tokens,
    hard=common.hard_gates,
    golden=(
        spec.Golden("gla", {"q": "q", "k": "k", "v": "v", "g": "log_decay"}),
        spec.Golden(
            "hgrn2",
            {"q": "q", "v": "v", "g": "log_decay"},
            prepare=tied_key,
        ),
    ),
    faults=common.DECAY_FAULTS
    | {
        "gate of a rank between": (
            lambda i: i | {"log_decay": i["log_decay"][:, 0, 0]},
            "log_decay",
            "2, 6",
        ),
    },
)


def rwkv_inputs(rng, B, T):
    inputs = channel_gate_inputs(rng, B, T)
    bonus = common.f32(rng.normal(size=(4, 6)))
    return {"r": inputs.pop("q")} | inputs | {"bonus": bonus}


def one_rwkv_gate(rng, B, T):
    inputs = rwkv_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


def scale_receptance(inputs, opts):
    scale = opts["scale"]
    ready = inputs | {"r": scale * inputs["r"]}
    return ready, lambda grads: grads | {"r": scale * grads["r"]}


RWKV6 = spec.Operator(
    name="rwkv6",
    core="gated_linear_attention_channel",
    function="rwkv6",
    make_inputs=rwkv_inputs,
    oracle=linear.rwkv6,
    make_state=common.head_state(4, 6, 5),
    parameters=("bonus",),
    lengths=(1, 2, 63, 65, 130),
    chunk_sizes=(16, 64),
    replicated=one_rwkv_gate,
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "rwkv6",
            {"r": "r", "k": "k", "v": "v", "w": "log_decay", "u": "bonus"},
            prepare=scale_receptance,
        ),
    ),
    faults={
        "value heads no multiple of key heads": common.DECAY_FAULTS[
            "value heads no multiple of key heads"
        ],
        "r and k heads differ": (common.wrong_heads("k"), "k", "3"),
        "one bonus too few": (
            lambda i: i | {"bonus": i["bonus"][:3]},
            "bonus",
            "3",
        ),
    },
)
