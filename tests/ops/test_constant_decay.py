"""Constant decays take a path of their own where lengths divide."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops


@pytest.mark.parametrize("chunk_size", [16, 48])
def test_constant_gates_are_gates_of_every_token(chunk_size, monkeypatch):
    # Several scan steps of several chunks, two value heads a key head.
    monkeypatch.setattr(ops._scalar_chunk, "_PRODUCTS", 16)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k = (jnp.asarray(rng.normal(size=(2, 96, 2, 3))) for _ in range(2))
        v, ct = (jnp.asarray(rng.normal(size=(2, 96, 4, 5))) for _ in range(2))
        state = jnp.asarray(rng.normal(size=(2, 4, 3, 5)))
        log_decay = jnp.array([0.0, -1e-3, -20.0, -jnp.inf])

        def loss(op, q, k, v, log_decay, state):
            y, state = op(q, k, v, log_decay, state)
            return jnp.sum(y * ct) + jnp.sum(state**2), (y, state)

        def constant(q, k, v, log_decay, state):
            return ops.retention(
                q,
                k,
                v,
                log_decay=log_decay,
                initial_state=state,
                chunk_size=chunk_size,
            )

        def tokens(q, k, v, log_decay, state):
            gates = jnp.broadcast_to(log_decay[None, None], v.shape[:3])
            return ops.gated_linear_attention(
                q, k, v, gates, initial_state=state, form="recurrent"
            )

        results = [
            jax.jit(
                jax.grad(
                    lambda *args, op=op: loss(op, *args),
                    argnums=(0, 1, 2, 3, 4),
                    has_aux=True,
                )
            )(q, k, v, log_decay, state)
            for op in (constant, tokens)
        ]
        chex.assert_trees_all_close(*results, rtol=1e-11, atol=1e-12)
