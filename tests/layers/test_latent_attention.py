"""Latent attention against NumPy, with and without a state."""

import jax
import numpy as np
import pytest

from seqjax import layers

B, T, D = 2, 7, 10
H, K, SHARED, V, R = 3, 4, 2, 5, 6
LAYER = layers.LatentAttention(H, K, SHARED, V, R, output_gate="headwise")


def oracle(p, x):
    def turned(r):
        angle = np.arange(T)[:, None, None]
        a, b = r[..., :1], r[..., 1:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    q = np.einsum("btd,dhk->bthk", x, p["query"]["kernel"])
    compressed = x @ p["compress"]["kernel"][:, 0]
    c = compressed[..., :R]
    c = c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    c = c * p["latent_norm"]["scale"]
    both = np.einsum("btr,rhk->bthk", c, p["expand"]["kernel"])
    shared = turned(compressed[:, :, None, R:])
    logits = np.einsum("bthk,bshk->bhts", q[..., :K], both[..., :K])
    logits += np.einsum("bthk,bsk->bhts", turned(q[..., K:]), shared[:, :, 0])
    logits = logits / np.sqrt(K + SHARED)
    logits = np.where(np.tri(T, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    o = np.einsum("bhts,bshv->bthv", weights, both[..., K:])
    gate = np.einsum("btd,dhk->bthk", x, p["gate"]["kernel"])
    o = o / (1 + np.exp(-gate))
    return np.einsum("bthv,hvd->btd", o, p["out"]["kernel"])


def test_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, D))
    shapes = jax.eval_shape(
        LAYER.init, jax.random.key(0), np.zeros((1, 1, D), np.float32)
    )
    params = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape), shapes
    )
    expected = oracle(params["params"], x)
    single, x = jax.tree.map(np.float32, (params, x))
    places = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))

    def close(y, expected):
        scale = np.sqrt((expected**2).mean())
        np.testing.assert_allclose(y / scale, expected / scale, 0, 2e-5)

    apply = jax.jit(LAYER.apply)
    y, after = apply(single, x)
    close(y, expected)
    # The same in pieces, whose keys and values are never made.
    _, state = apply(
        single, x[:, :4], LAYER.init_state(B, T), None, places[:, :4]
    )
    y, state = apply(single, x[:, 4:], state, None, places[:, 4:])
    close(y, expected[:, 4:])
    assert state.k.shape == (B, T, 1, R + SHARED)
    assert state.v.shape == (B, T, 1, R)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), after, state
    )


def test_what_is_refused():
    config = layers.LatentAttentionOptions(head_dim=6)
    host = layers.Host(8, 1, 2)
    with pytest.raises(ValueError, match="shared_dim must be an even number"):
        config.check(host, "latent_attention.")
    x = np.zeros((1, 3, D), np.float32)
    with pytest.raises(ValueError, match="positions must be None where"):
        jax.eval_shape(
            LAYER.clone(rotary_base=None).init,
            jax.random.key(0),
            x,
            None,
            None,
            np.zeros((1, 3), np.int32),
        )
