"""Chunked training takes memory linear in the length, and not much of it."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _cases
from benchmarks import _measure
from benchmarks import _timing

# Their chunks are those of a row that the default run takes.
SHARED = {
    "linear_attention",
    "linear_attention_normalized",
    "retention",
    "lightning_attention",
    "ssd",
    "rwkv6",
    "lightnet_attention",
    "gated_slot_attention",
    "delta_rule",
    "gated_delta_product",
    "comba",
    "gated_delta_rule_2",
}
# Scratch over the bytes of inputs and output, where rank-one updates erase.
ERASING = {
    "delta_rule",
    "delta_rule_gated",
    "delta_rule_channel",
    "gated_delta_product",
    "comba",
    "gated_delta_rule_2",
    "dplr_delta_rule",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.full] * (name in SHARED))
        for name, case in _cases.CASES.items()
        if "chunk" in case.forms
    ],
)
def test_scratch_memory_is_small_and_grows_linearly(name):
    case = _cases.CASES[name]
    ((_, function),) = _measure.contenders(
        case, _measure.Settings(forms=("chunk",), baseline=False)
    ).items()
    scratch, given = [], []
    for length in (2048, 8192):
        sizes = _cases.Sizes(length=length)
        inputs = jax.eval_shape(
            lambda key, sizes=sizes: case.inputs(key, sizes, jnp.float32),
            jax.random.key(0),
        )
        y = jax.eval_shape(function, *inputs)
        program = _timing.compile_program(
            _measure.with_gradients(function), y, *inputs
        )
        scratch.append(program.temporary_bytes)
        given.append(
            sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, y))
        )
    assert scratch[1] <= 4.4 * scratch[0], scratch
    assert scratch[0] <= (10 if name in ERASING else 6) * given[0], (
        scratch,
        given,
    )
