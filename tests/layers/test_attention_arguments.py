"""Sizes that an attention layer refuses, with the reason."""

import jax
import numpy as np
import pytest

from seqjax import layers

X = np.zeros((1, 3, 8), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key_value_heads": 0},
            "key_value_heads must be .* heads=4, .* got 0",
        ),
        (
            {"key_value_heads": 3},
            "key_value_heads must be .* heads=4, .* got 3",
        ),
        ({"key_value_heads": 2.0}, "key_value_heads must be an int .* got 2.0"),
        ({"head_dim": 5}, "rotary positions need an even head_dim, got 5"),
        ({"output_gate": "head"}, "output_gate must be one of .* got 'head'"),
    ],
)
def test_refused(changes, message):
    layer = layers.Attention(**({"heads": 4, "head_dim": 2} | changes))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), X)


def test_an_odd_width_without_rotation():
    layer = layers.Attention(4, 5, rotary_base=None)
    (y, _), _ = jax.eval_shape(layer.init_with_output, jax.random.key(0), X)
    assert y.shape == X.shape


def test_the_cache_has_the_shared_heads():
    with pytest.raises(ValueError, match="key_value_heads must be an int"):
        layers.Attention(4, 2, 0).init_state(1, 8)
    assert layers.Attention(4, 2, 2).init_state(1, 8).k.shape == (1, 8, 2, 2)
