"""Gated slot attention and LightNet."""

import dataclasses
import functools

import numpy as np

from seqjax import ops
from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import slots


def slot_inputs(rng, B, T, M=3):
    return common.qkv(rng, B, T) | {
        "s": common.f32(rng.random(size=(B, T, 4, M))),
        "log_decay": common.f32(-np.exp(rng.normal(size=(B, T, 4, M)) - 2)),
    }


@functools.cache
def with_slots(operator, count):
    """One program for each number of slots: a slot more is another softmax."""
    del count
    return dataclasses.replace(
        operator,
        options={"scale": 1.0},
        oracle=functools.partial(slots.gated_slot_attention, scale=1.0),
    )


SLOTS = spec.Operator(
    name="gated_slot_attention",
    function="gated_slot_attention",
    make_inputs=slot_inputs,
    oracle=slots.gated_slot_attention,
    make_state=lambda rng, B: ops.GSAState(
        common.f32(rng.normal(size=(B, 4, 6, 3))),
        common.f32(rng.normal(size=(B, 4, 3, 5))),
    ),
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "gsa",
            {"q": "q", "k": "k", "v": "v", "s": "s", "g": "log_decay"},
            initial=("hk0", "hv0"),
            final=("hkt", "hvt"),
            variant=lambda operator, inputs, opts: with_slots(
                operator, inputs["s"].shape[-1]
            ),
        ),
    ),
    faults=common.QKV_FAULTS
    | {
        "one slot too few": (
            lambda i: i | {"log_decay": i["log_decay"][..., :2]},
            "log_decay",
            "2",
        ),
    },
)


def prefix_inputs(rng, B, T, H=4, K=6, V=5):
    return {
        "q": common.f32(rng.normal(size=(B, T, H, K))),
        "k": common.f32(rng.normal(size=(B, T, H, K)) * 2),
        "v": common.f32(rng.normal(size=(B, T, H, V))),
    }


def hard_keys(rng, inputs):
    """Weights that are equal, outweigh all others, or vanish, ±1e3."""
    k = np.array(inputs["k"])
    k[0] = 0
    k[1] *= 500
    k[2] = np.linspace(-1e3, 1e3, k.shape[1])[:, None, None]
    k[3] = -np.linspace(-1e3, 1e3, k.shape[1])[:, None, None]
    k[4] = np.where(rng.random(k[4].shape) < 0.05, 1e4, 0.0)
    k[5] = np.where(rng.random(k[5].shape) < 0.5, -1e3, -1e3 + 1e-3)
    k[6] = 30 * np.sign(k[6])
    return {"keys": inputs | {"k": common.f32(k)}}


LIGHTNET = spec.Operator(
    name="lightnet_attention",
    core="gated_linear_attention_channel",
    beyond_core=True,
    function="lightnet_attention",
    make_inputs=prefix_inputs,
    oracle=slots.lightnet_attention,
    make_state=lambda rng, B: ops.LightNetState(
        common.f32(rng.normal(size=(B, 4, 6, 5))),
        common.f32(rng.normal(size=(B, 4, 6))),
    ),
    empty_state=lambda B: ops.LightNetState(
        np.zeros((B, 4, 6, 5), np.float32),
        np.full((B, 4, 6), -np.inf, np.float32),
    ),
    hard=hard_keys,
    faults={
        "heads of q and v differ": (
            common.wrong_heads("v"),
            "v",
            "3",
        ),
    },
)
