"""The running maximum of RWKV-4: its derivative, and what it rounds away."""

import jax
import numpy as np
import pytest

from seqjax import ops

B, T, D = 2, 37, 4


def _gradients(form):
    """Of the final maximum, with segment ids that the compiler cannot see."""

    def loss(inputs, state, ids):
        _, after = ops.rwkv4(
            **inputs, initial_state=state, segment_ids=ids, form=form
        )
        return after.max.sum()

    return jax.jit(jax.grad(loss, (0, 1)))


def _random():
    rng = np.random.default_rng(3)
    inputs = {
        "k": 3 * rng.normal(size=(B, T, D)),
        "v": rng.normal(size=(B, T, D)),
        "log_decay": -np.abs(rng.normal(size=D)) / 2,
        "bonus": rng.normal(size=D),
    }
    return {name: x.astype(np.float32) for name, x in inputs.items()}


def _ties():
    """Equal weights that do not decay: all are the largest."""
    zeros = np.zeros(D, np.float32)
    k = np.ones((B, T, D), np.float32)
    return {"k": k, "v": k, "log_decay": zeros, "bonus": zeros}


def test_maximum_has_one_derivative_in_all_forms():
    """Ties go to the oldest: the state in row 0, the first token in row 1."""
    ids = np.zeros((B, T), np.int32)
    num, den = np.ones((2, B, D), np.float32)
    low = np.full((B, D), -100, np.float32)
    tied = np.array([[1.0], [-100.0]], np.float32) * np.ones_like(low)
    results = {}
    for form in ("recurrent", "chunk", "parallel"):
        run = _gradients(form)
        results[form] = (
            run(_random(), ops.RWKV4State(num, den, np.abs(low)), ids),
            run(_random(), ops.RWKV4State(num, den, low), ids),
            run(_ties(), ops.RWKV4State(num, den, tied), ids),
        )
    for form in ("chunk", "parallel"):
        jax.tree.map(
            np.testing.assert_array_equal, results[form], results["recurrent"]
        )
    inputs, state = results["parallel"][2]
    np.testing.assert_array_equal(state.max, [[1] * D, [0] * D])
    np.testing.assert_array_equal(inputs["k"][1, 0], [1] * D)
    np.testing.assert_array_equal(inputs["k"].sum(), D)


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
def test_maximum_may_be_as_large_as_documented(form):
    """The first token outweighs all others, by decays that are rounded."""
    length = 1000
    k = np.full((1, length, 3), -1e6, np.float32)
    k[:, 0] = 1e6
    v = np.ones_like(k) * np.arange(1, length + 1, dtype=np.float32)[:, None]
    # At 1e6 floats are 1 / 16 apart: stays, falls by too much, falls often.
    log_decay = np.array([-0.031, -0.032, -1000.04], np.float32)
    run = jax.jit(lambda *inputs: ops.rwkv4(*inputs, form=form))
    o, state = run(k, v, log_decay, np.zeros(3, np.float32))
    np.testing.assert_allclose(o, np.ones_like(o), rtol=1e-4)
    np.testing.assert_allclose(state.num, state.den, rtol=1e-4)
