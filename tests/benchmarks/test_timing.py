"""Interleaved timing calls everybody equally often, each warmed up."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import _timing


def test_calls_take_turns():
    called = []
    calls = [lambda i=i: called.append(i) or jnp.zeros(()) for i in range(3)]
    timings = _timing.interleave(calls, repeats=3)
    # Before every measured run an unmeasured one of the same call.
    assert called == [0, 0, 1, 1, 2, 2] * 3
    for timing in timings:
        assert 0 < timing.lower <= timing.median <= timing.upper


def test_repeats_below_one_are_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        _timing.interleave([], repeats=0)


def test_program_counts_scratch_memory():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    program = _timing.compile_program(lambda x: (x @ x) @ x, x)
    assert program.temporary_bytes >= x.size * 4
    assert program.compile_seconds > 0
    assert program.call(jnp.eye(256)).shape == (256, 256)
