"""The delta rules: one write strength, a gate a head or a channel."""

import dataclasses
import functools

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import delta


def unit(x):
    """Keys of norm 1, as the layers give them."""
    return common.f32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def delta_inputs(rng, B, T):
    """Writing strengths from 0 to 2."""
    inputs = common.qkv(rng, B, T)
    beta = common.f32(2 * rng.random((B, T, 4)))
    return inputs | {"k": unit(inputs["k"]), "beta": beta}


def gated_inputs(rng, B, T):
    decay = -np.exp(rng.normal(size=(B, T, 4)) - 2)
    return delta_inputs(rng, B, T) | {"log_decay": common.f32(decay)}


def hard_keys(rng, inputs):
    """Equal, parallel, repeating keys; strengths 0, 1 and 2 in every row."""
    strength = np.array(inputs["beta"])
    for row, value in enumerate((0.0, 1.0, 2.0)):
        strength[row] = value
    strength[3] = rng.choice([0.0, 1.0, 2.0], size=strength[3].shape)
    inputs = inputs | {"beta": common.f32(strength)}
    hard = common.equal_keys(rng, inputs)
    return {
        label: problem | {"k": unit(problem["k"])}
        for label, problem in hard.items()
    }


def hard_gated(rng, inputs):
    return common.hard_gates(rng, inputs) | hard_keys(rng, inputs)


def one_gate_for_all_tokens(rng, B, T):
    inputs = gated_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


def delta_variant(operator, inputs, opts):
    """Golden cases of one program: those with the same shapes."""
    groups = inputs["v"].shape[2] // inputs["k"].shape[2]
    return _unit_scale(operator, groups, inputs["beta"].ndim)


@functools.cache
def _unit_scale(operator, *shapes):
    del shapes  # part of the cache key
    return dataclasses.replace(
        operator,
        options={**operator.options, "scale": 1.0},
        oracle=functools.partial(operator.oracle, scale=1.0),
    )


def normalise(inputs, opts):
    """q times scale; q and k to norm 1 where the case leaves that to us."""
    scale = opts["scale"]
    if not opts["qk_l2norm"]:
        ready = inputs | {"q": inputs["q"] * scale}
        return ready, lambda grads: grads | {"q": grads["q"] * scale}
    length = {
        n: np.sqrt(np.sum(inputs[n] ** 2, -1, keepdims=True) + 1e-6)
        for n in "qk"
    }
    ready = {n: inputs[n] / length[n] for n in "qk"}
    factor = {"q": scale, "k": 1.0}

    def pullback(grads):
        out = dict(grads)
        for n in "qk":
            g = grads[n] * factor[n]
            along = np.sum(g * ready[n], -1, keepdims=True)
            out[n] = (g - along * ready[n]) / length[n]
        return out

    return inputs | ready | {"q": ready["q"] * scale}, pullback


BETA_FAULTS = {
    "one strength too few": (
        lambda i: i | {"beta": i["beta"][..., :3]},
        "beta",
        "3",
    ),
}

DELTA = spec.Operator(
    name="delta_rule",
    core="delta_rule_scalar",
    function="delta_rule",
    make_inputs=delta_inputs,
    oracle=delta.delta_rule,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(16, 64),
    hard=hard_keys,
    golden=(
        spec.Golden(
            "delta_rule",
            {n: n for n in ("q", "k", "v", "beta")},
            cases=(
                "tiny",
                "t1",
                "t63",
                "t65",
                "t130",
                "beta_edge",
                "beta_to_2",
            ),
        ),
    ),
    faults=common.QKV_FAULTS | BETA_FAULTS,
)


def value_inputs(rng, B, T):
    beta = common.f32(2 * rng.random((B, T, 4, 5)))
    return delta_inputs(rng, B, T) | {"beta": beta}


VALUE_DELTA = spec.Operator(
    name="delta_rule_value_strengths",
    function="delta_rule",
    make_inputs=value_inputs,
    oracle=delta.delta_rule,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 65, 130),
    chunk_sizes=(16,),
    table_lengths=(),
    hard=hard_keys,
    golden=(
        spec.Golden(
            "delta_rule",
            {n: n for n in ("q", "k", "v", "beta")},
            cases=("beta_per_channel",),
        ),
    ),
    faults=common.QKV_FAULTS,
)

GATED_DELTA = spec.Operator(
    name="delta_rule_scalar",
    function="delta_rule",
    make_inputs=gated_inputs,
    oracle=delta.delta_rule,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 15, 63, 64, 65, 130, 257),
    chunk_sizes=(16, 32, 128),
    replicated=one_gate_for_all_tokens,
    hard=hard_gated,
    golden=(
        spec.Golden(
            "gated_delta_rule",
            {
                "q": "q",
                "k": "k",
                "v": "v",
                "beta": "beta",
                "g": "log_decay",
            },
            variant=delta_variant,
            prepare=normalise,
        ),
    ),
    faults=common.DECAY_FAULTS | BETA_FAULTS,
)


def product_inputs(rng, B, T, n=2):
    """Two steps a token, one decay before them."""
    inputs = delta_inputs(rng, B, n * T)
    decay = -np.exp(rng.normal(size=(B, T, 4)) - 2)
    q = inputs["q"][:, ::n]
    return inputs | {"q": q, "log_decay": common.f32(decay)}


@functools.cache
def _product(operator, steps, gated):
    del gated  # part of the cache key: without a gate it is another program
    options = {"num_householder": steps, "scale": 1.0}
    return dataclasses.replace(
        operator,
        options=options,
        oracle=functools.partial(delta.gated_delta_product, **options),
    )


def product_variant(operator, inputs, opts):
    return _product(operator, opts["num_householder"], "log_decay" in inputs)


PRODUCT = spec.Operator(
    name="gated_delta_product",
    core="delta_rule_scalar",
    function="gated_delta_product",
    make_inputs=product_inputs,
    oracle=functools.partial(delta.gated_delta_product, num_householder=2),
    make_state=common.head_state(4, 6, 5),
    steps={"k": 2, "v": 2, "beta": 2},
    options={"num_householder": 2},
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(32,),
    hard=hard_gated,
    golden=(
        spec.Golden(
            "gated_delta_product",
            {n: n for n in ("q", "k", "v", "beta")} | {"g": "log_decay"},
            variant=product_variant,
        ),
    ),
    faults={
        "a step too few": (
            lambda i: i | {"k": i["k"][:, :-1]},
            "k",
            "9",
        ),
        "q and k heads differ": (common.wrong_heads("k"), "k", "3"),
    }
    | BETA_FAULTS,
)


def comba_inputs(rng, B, T):
    """p is k, shortened, as in the published layer."""
    inputs = gated_inputs(rng, B, T)
    short = common.f32(inputs["k"] * rng.random((B, T, 1, 1)))
    beta = common.f32(rng.random((B, T, 4)))
    return inputs | {"p": short, "beta": beta}


COMBA = spec.Operator(
    name="comba",
    core="delta_rule_scalar",
    function="comba",
    make_inputs=comba_inputs,
    oracle=delta.comba,
    make_state=common.head_state(4, 6, 5),
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(16, 64),
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "comba",
            {n: n for n in ("q", "k", "v", "p", "beta")} | {"g": "log_decay"},
        ),
    ),
    faults=common.DECAY_FAULTS
    | BETA_FAULTS
    | {"p of another width": (lambda i: i | {"p": i["v"]}, "p", "5")},
)
