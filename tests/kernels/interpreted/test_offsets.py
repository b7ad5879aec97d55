"""Kernels over arrays of more than 2^31 cells: no offset wraps around."""

import jax
import jax.numpy as jnp
import pytest

from seqjax_kernels.decay import cases
from seqjax_kernels.decay import configs
from seqjax_kernels.pointwise import convolution
from seqjax_kernels.pointwise import cumsum
from seqjax_kernels.pointwise import norm
from tests.kernels.interpreted import phantoms

# B, T, G, H, K, V; the second of two batches lies beyond 2^31 cells.
HEADS = (2, 1040, 4096, 8192, 256, 256)
TOKENS = (2, 300_000, 8192)
# Kernels of ids, which are few.
SMALL = ("order_kernel", "plan_kernel")


def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def scalar():
    gates = cases._inputs(jnp.bfloat16, HEADS, packed=True)
    return cases._run, *gates


def channel():
    gates = cases._inputs(jnp.bfloat16, HEADS, "channel", packed=True)
    return cases._run_channel, *gates


def convolve():
    def run(x, weight, bias, initial, ids):
        plan = convolution.make_plan(ids, 4)
        y, back = jax.vjp(
            lambda x, weight, bias, initial: convolution.short_convolution(
                x, weight, bias, initial, plan
            ),
            *(x, weight, bias, initial),
        )
        return back(y)

    batch, length, width = TOKENS
    return (
        run,
        array(*TOKENS),
        array(4, width),
        array(width),
        array(batch, 3, width),
        array(batch, length, dtype="int32"),
    )


def normalize():
    def run(*inputs):
        y, back = jax.vjp(norm.gated_rms_norm, *inputs)
        return back(y)

    return run, array(*TOKENS), array(*TOKENS), array(TOKENS[-1])


def sums():
    return lambda x: cumsum.chunk_cumsum(x, 64), array(*TOKENS)


@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (scalar, 7),
        (channel, 8),
        (convolve, 5),
        (normalize, 2),
        (sums, 1),
    ],
)
def test_offsets(case, kernels, monkeypatch):
    monkeypatch.setattr(configs, "parts", lambda *_: 3)
    monkeypatch.setattr(configs, "shares", lambda *_: 2)
    run, *inputs = case()
    launched = phantoms.launches(monkeypatch, run, *inputs)
    assert len(launched) == kernels
    for one in launched:
        if one[0].fn.__name__ in SMALL:
            continue
        reached = phantoms.reach(monkeypatch, one)
        assert max(reached.values()) > 2**31, reached
