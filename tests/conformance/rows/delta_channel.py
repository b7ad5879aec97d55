"""The delta rules with a gate a key channel."""

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.conformance.rows import delta as scalar
from tests.oracles import delta


def channel_gates(rng, B, T, H=4, K=6):
    return common.f32(-np.exp(rng.normal(size=(B, T, H, K)) - 2))


def kda_inputs(rng, B, T):
    inputs = scalar.delta_inputs(rng, B, T)
    return inputs | {"log_decay": channel_gates(rng, B, T)}


def one_gate_for_all_tokens(rng, B, T):
    inputs = kda_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


GATE_FAULTS = {
    "one gated channel too few": (
        lambda i: i | {"log_decay": i["log_decay"][..., :5]},
        "log_decay",
        "5",
    ),
}

KDA = spec.Operator(
    name="delta_rule_channel",
    function="delta_rule",
    make_inputs=kda_inputs,
    oracle=delta.delta_rule,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(16, 64),
    replicated=one_gate_for_all_tokens,
    hard=scalar.hard_gated,
    golden=(
        spec.Golden(
            "kda",
            {n: n for n in ("q", "k", "v", "beta")} | {"g": "log_decay"},
            variant=scalar.delta_variant,
        ),
    ),
    faults=common.QKV_FAULTS | scalar.BETA_FAULTS | GATE_FAULTS,
)


def equal_heads(rng, B, T):
    """q, k, v with one key head a value head."""
    inputs = common.qkv(rng, B, T, Hk=4)
    return inputs | {"k": scalar.unit(inputs["k"])}


def rwkv7_inputs(rng, B, T):
    """a and b as RWKV-7 makes them: erases along one key."""
    inputs = equal_heads(rng, B, T)
    erased = scalar.unit(rng.normal(size=(B, T, 4, 6)))
    rate = common.f32(rng.random((B, T, 4, 6)))
    gates = {"a": -erased, "b": erased * rate}
    return inputs | gates | {"log_decay": channel_gates(rng, B, T)}


HEAD_FAULTS = {
    "key heads differ": (common.wrong_heads("k"), "k", "3"),
    "value heads differ": (common.wrong_heads("v"), "v", "3"),
}

DPLR = spec.Operator(
    name="dplr_delta_rule",
    function="dplr_delta_rule",
    make_inputs=rwkv7_inputs,
    oracle=delta.dplr_delta_rule,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(16, 64),
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "rwkv7",
            {"r": "q", "w": "log_decay"} | {n: n for n in ("k", "v", "a", "b")},
        ),
    ),
    faults=HEAD_FAULTS
    | GATE_FAULTS
    | {"a of another width": (lambda i: i | {"a": i["v"]}, "a", "5")},
)


def gdn2_inputs(rng, B, T):
    inputs = equal_heads(rng, B, T)
    return inputs | {
        "b": common.f32(rng.random((B, T, 4, 6))),
        "w": common.f32(rng.random((B, T, 4, 5))),
        "log_decay": channel_gates(rng, B, T),
    }


GDN2 = spec.Operator(
    name="gated_delta_rule_2",
    core="delta_rule_channel",
    function="gated_delta_rule_2",
    make_inputs=gdn2_inputs,
    oracle=delta.gated_delta_rule_2,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 65, 130),
    chunk_sizes=(16,),
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "gdn2",
            {n: n for n in ("q", "k", "v", "b", "w")} | {"g": "log_decay"},
        ),
    ),
    faults=HEAD_FAULTS
    | GATE_FAULTS
    | {"b of another width": (lambda i: i | {"b": i["v"]}, "b", "5")},
)
