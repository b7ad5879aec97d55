"""Softmax attention with its cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops
from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import attention

SLOTS = 152  # the board and what is cached before it


def attention_inputs(rng, B, T, H=4, Hk=2, K=6, V=5):
    return {
        "q": common.f32(rng.normal(size=(B, T, H, K))),
        "k": common.f32(rng.normal(size=(B, T, Hk, K))),
        "v": common.f32(rng.normal(size=(B, T, Hk, V))),
    }


def attention_state(rng, B, *, slots=SLOTS, gate=False):
    """A cache after 0 to 20 tokens; number r of a row lies in slot r mod S."""
    length = np.arange(B) * 20 // max(B - 1, 1)
    position = np.full((B, slots), -1, np.int32)
    for row in range(B):
        for r in range(max(length[row] - slots, 0), length[row]):
            position[row, r % slots] = r
    filled = position >= 0
    mask = filled[:, :, None, None]
    state = ops.AttentionState(
        k=common.f32(rng.normal(size=(B, slots, 2, 6)) * mask),
        v=common.f32(rng.normal(size=(B, slots, 2, 5)) * mask),
        segment=np.where(filled, 0, -1).astype(np.int32),
        position=position,
        length=length.astype(np.int32),
    )
    if not gate:
        return state
    behind = (length[:, None] - 1 - position) * 0.1 * filled
    return state._replace(
        log_decay=common.f32(-behind[:, :, None] * rng.random(4)),
        log_decay_low=np.zeros((B, slots, 4), np.float32),
    )


def empty_attention_state(B, *, slots=SLOTS, gate=False):
    state = attention_state(np.random.default_rng(0), B, slots=slots, gate=gate)
    zeros = jax.tree.map(np.zeros_like, state)
    empty = np.full((B, slots), -1, np.int32)
    return zeros._replace(segment=empty, position=empty)


def cached(state):
    """k, v and decays of the filled slots, oldest first, zeros behind."""
    key = jnp.where(
        state.position < 0, jnp.iinfo(jnp.int32).max, state.position
    )
    order = jnp.argsort(key, axis=1)

    def take(x):
        index = order.reshape(order.shape + (1,) * (x.ndim - 2))
        there = jnp.sort(key, axis=1) < jnp.iinfo(jnp.int32).max
        x = jnp.take_along_axis(x, index, axis=1)
        return jnp.where(there.reshape(index.shape), x, jnp.zeros_like(x))

    leaves = (take(state.k), take(state.v))
    if state.log_decay is None:
        return leaves
    # the decay itself: a gate of -inf makes the sum -inf
    decay = jnp.exp(state.log_decay + state.log_decay_low)
    return (*leaves, take(decay))


@functools.cache
def windowed(operator, window, ratio, names):
    del ratio, names  # parts of the cache key: cases of one program
    options = {"scale": 1.0} | ({"window": window} if window else {})
    return dataclasses.replace(
        operator,
        options=options,
        oracle=functools.partial(attention.softmax_attention, **options),
    )


def attention_variant(operator, inputs, opts):
    ratio = inputs["q"].shape[2] // inputs["k"].shape[2]
    return windowed(operator, opts["window"], ratio, tuple(inputs))


def attention_golden(*cases):
    return spec.Golden(
        "softmax_attn",
        {"q": "q", "k": "k", "v": "v", "g": "log_decay", "sink": "sink"},
        initial=(),
        final=(),
        cases=cases,
        variant=attention_variant,
    )


ATTENTION_FAULTS = {
    "query heads no multiple of key heads": (common.wrong_heads("q"), "q", "3"),
    "key and value heads differ": (common.wrong_heads("v"), "v", "3"),
    "key width differs": common.QKV_FAULTS["key width differs"],
}

ATTENTION = spec.Operator(
    name="softmax_attention",
    function="softmax_attention",
    lengths=spec.LENGTHS[:-1],  # the row with a window has the longest
    make_inputs=attention_inputs,
    oracle=attention.softmax_attention,
    make_state=attention_state,
    empty_state=empty_attention_state,
    table_lengths=(),
    exchanges=("all_gather", "ring"),
    chunk_exchanges=("ring",),
    compared=cached,
    resumable=False,
    forgets=False,
    capacity_is_length=True,
    hard=common.equal_keys,
    golden=(attention_golden("full"),),
    faults=ATTENTION_FAULTS,
)

WINDOW = spec.Operator(
    name="softmax_attention_window_sink",
    function="softmax_attention",
    options={"window": 8},
    make_inputs=lambda rng, B, T: (
        attention_inputs(rng, B, T) | {"sink": common.f32(rng.normal(size=4))}
    ),
    oracle=functools.partial(attention.softmax_attention, window=8),
    make_state=functools.partial(attention_state, slots=7),
    empty_state=functools.partial(empty_attention_state, slots=7),
    parameters=("sink",),
    lengths=(1, 2, 65, 127, 130, 257),
    chunk_sizes=(16, 64),
    table_lengths=(),
    exchanges=(None,),
    compared=cached,
    resumable=False,
    forgets=False,
    capacity_is_length=True,
    golden=(attention_golden("t1", "w1", "w8", "w16", "sink"),),
    faults=ATTENTION_FAULTS
    | {
        "one sink too few": (
            lambda i: i | {"sink": i["sink"][:3]},
            "sink",
            "3",
        ),
    },
)

FORGET = spec.Operator(
    name="softmax_attention_forget",
    core="softmax_attention",
    beyond_core=True,
    function="softmax_attention",
    make_inputs=lambda rng, B, T: (
        attention_inputs(rng, B, T)
        | {"log_decay": common.f32(-np.exp(rng.normal(size=(B, T, 4)) - 2))}
    ),
    oracle=attention.softmax_attention,
    make_state=functools.partial(attention_state, slots=SLOTS, gate=True),
    empty_state=functools.partial(
        empty_attention_state, slots=SLOTS, gate=True
    ),
    lengths=(1, 2, 65, 127, 130),
    chunk_sizes=(16, 64),
    table_lengths=(),
    exchanges=("all_gather", "ring"),
    chunk_exchanges=("ring",),
    compared=cached,
    resumable=False,
    forgets=False,
    capacity_is_length=True,
    rounding_leaves=(3,),
    hard=common.hard_gates,
    golden=(attention_golden("forget", "forget_strong"),),
    faults=ATTENTION_FAULTS
    | {"one gate too few": common.DECAY_FAULTS["one decay too few"]},
)
