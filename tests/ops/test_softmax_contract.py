"""Softmax attention: dtypes, and what it refuses and how it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops

attend = ops.softmax_attention


Q = np.zeros((2, 3, 4, 5), np.float32)
IDS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": Q[0]}, "q must have shape"),
        ({"q": Q[:, :, :3]}, "multiple"),
        ({"window": 0}, "window must be an int of at least 1"),
        ({"causal": 1}, "causal must be True or False"),
        ({"causal": False, "window": 2}, "window has no meaning"),
        ({"causal": False, "log_decay": Q[..., 0]}, "log_decay has no meaning"),
        ({"causal": False, "form": "recurrent"}, "recurrent"),
        ({"sink": Q[0, 0]}, "sink must have shape"),
        ({"scale": Q}, "scale must be a Python number or None"),
        ({"scale": float("nan")}, "scale must be finite, got nan"),
        ({"scale": True}, "scale must be a Python number or None, got True"),
        ({"segment_ids": IDS.astype(np.float32)}, "segment_ids must be int32"),
        ({"form": "fast"}, "form must be one of"),
        ({"form": "parallel", "chunk_size": 16}, "chunk_size=16 has no"),
        ({"exchange": "ring"}, "needs axis_name"),
        ({"implementation": "magic"}, "implementation must be one of"),
        ({"initial_state": Q}, "must be an AttentionState"),
        (
            {"initial_state": ops.attention_cache, "capacity": 2},
            "cannot take 3 more",
        ),
        (
            {"initial_state": ops.attention_cache, "window": 3},
            "window=3 needs 2",
        ),
        (
            {
                "initial_state": ops.attention_cache,
                "log_decay": Q[..., 0],
            },
            "gate_heads",
        ),
        ({"v": Q[:, :, :2].astype(np.int32)}, "v must be one of"),
        ({"state_dtype": np.int32}, "state_dtype must be one of"),
    ],
)
def test_bad_input(changes, message):
    options = {"q": Q, "k": Q[:, :, :2], "v": Q[:, :, :2]} | changes
    capacity = options.pop("capacity", 8)
    if options.get("initial_state") is ops.attention_cache:
        options["initial_state"] = ops.attention_cache(2, capacity, 2, 5)
    with pytest.raises(ValueError, match=message):
        attend(options.pop("q"), options.pop("k"), options.pop("v"), **options)


def test_neither_capacity_nor_window():
    with pytest.raises(ValueError, match="capacity must be given"):
        ops.attention_cache(1, None, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 1.0}, "capacity must be an int of at least 0, got 1.0"),
        ({"batch": True}, "batch must be an int of at least 0, got True"),
        ({"heads": 0}, "heads must be an int of at least 1, got 0"),
        ({"window": "8"}, "window must be an int of at least 1, got '8'"),
        ({"dtype": "wide"}, "dtype must be one of .* got 'wide'"),
    ],
)
def test_caches_that_are_refused(changes, message):
    sizes = {"batch": 2, "capacity": 8, "heads": 2, "key_dim": 4} | changes
    with pytest.raises(ValueError, match=message):
        ops.attention_cache(**sizes)


@pytest.mark.parametrize("form", ["parallel", "chunk", "recurrent"])
def test_a_sink_of_no_weight(form):
    """exp(-inf) = 0: as without a sink, and gradients stay finite."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, 2, 4)).astype("f") for _ in range(3))
    # A row of padding alone has nothing but the sink below the line.
    ids = np.array([[0, 0, -1, 0, 1], [-1] * 5], np.int32)
    sink = jnp.asarray([-np.inf, 0.5], jnp.float32)

    @jax.jit
    def run(q, k, v, sink):
        def loss(q, k, v, sink):
            y, _ = attend(q, k, v, sink=sink, segment_ids=ids, form=form)
            return jnp.sum(jnp.sin(y + 1)), y

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(q, k, v, sink)

    grads, y = run(q, k, v, sink)
    assert all(np.isfinite(g).all() for g in grads)
    assert grads[3][0] == 0 and grads[3][1] != 0
    without, _ = attend(q, k, v, segment_ids=ids, form="parallel")
    np.testing.assert_allclose(y[:, :, 0], without[:, :, 0], rtol=1e-5)
    assert not y[1].any()
