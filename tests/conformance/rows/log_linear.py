"""Log-linear attention."""

import dataclasses
import functools

import numpy as np

from seqjax import ops
from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import log_linear

LEVELS = 8


def level_inputs(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, T, 4)) - 2)
    return common.qkv(rng, B, T) | {
        "log_decay": common.f32(decay),
        "level_scales": common.f32(rng.random(size=(B, T, 4, LEVELS))),
    }


@functools.cache
def with_heads(operator, key_heads, heads):
    """One program for each grouping: a head of zeros more would change it."""
    del key_heads, heads
    return dataclasses.replace(operator)


LOG_LINEAR = spec.Operator(
    name="log_linear_attention",
    function="log_linear_attention",
    make_inputs=level_inputs,
    oracle=log_linear.log_linear_attention,
    make_state=lambda rng, B: ops.LogLinearState(
        common.f32(rng.normal(size=(B, 4, LEVELS, 6, 5))),
        rng.integers(0, 200, size=B).astype(np.int32),
    ),
    compared=lambda state: state.levels,
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "log_linear_attn",
            {
                "q": "q",
                "k": "k",
                "v": "v",
                "g": "log_decay",
                "level_scales": "level_scales",
            },
            initial=(),
            final=(),
            variant=lambda operator, inputs, opts: with_heads(
                operator, inputs["q"].shape[2], inputs["v"].shape[2]
            ),
        ),
    ),
    faults=common.DECAY_FAULTS
    | {
        "one head of weights too few": (
            lambda i: i | {"level_scales": i["level_scales"][:, :, :3]},
            "level_scales",
            "3",
        ),
    },
)
