"""The gated norm's arguments; its values stand in tests/layers."""

import jax
import numpy as np
import pytest

from seqjax import ops

X = np.ones((2, 3, 8), np.float32)
WEIGHT = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(weight=X),
            r"weight must have shape \[D\], got shape \(2, 3, 8\)",
        ),
        (
            dict(x=X[..., :4]),
            r"x must be an array of shape \[..., D\] \(D = 8 f",
        ),
        (dict(gate=X[:1]), r"gate must have the shape of x, \(2, 3, 8\), got"),
        (dict(gate=None), "gate must be an array of shape .*, got NoneType"),
        (dict(x=X.tolist()), "x must be an array of shape .*, got list"),
        (dict(x=X.astype(int)), "x must be one of float16, .*, got int"),
        (dict(activation="gelu"), "must be one of silu, sigmoid, got 'gelu'"),
        (dict(activation=[]), r"must be one of silu, sigmoid, got \[\]"),
        (dict(eps=-1e-5), "eps must be a .* at least 0, got -1e-05"),
        (dict(eps=np.ones(8)), "eps must be a Python number, .* got array"),
        (dict(eps="0"), "eps must be a Python number, .* got '0'"),
        (dict(gate_first="no"), "gate_first must be True or False, got 'no'"),
        (dict(groups=3), "groups must be at least 1 and divide D = 8, got 3"),
        (dict(groups=0), "groups must be at least 1 and divide D = 8, got 0"),
        (dict(groups=2.0), "groups must be an int, got 2.0"),
        (dict(implementation="cuda"), "must be one of triton, xla"),
    ],
)
def test_refusals(change, words):
    arguments = dict(x=X, gate=X, weight=WEIGHT) | change
    with pytest.raises(ValueError, match=f"gated_rms_norm: .*{words}"):
        ops.gated_rms_norm(**arguments)


def test_eps_holds_rows_of_zeros():
    """Value and gradient are finite where there is nothing to divide by."""

    def total(x):
        return ops.gated_rms_norm(x, X, WEIGHT, eps=0.25).sum()

    value, slope = jax.value_and_grad(total)(0 * X)
    assert value == 0
    # 1 / sqrt(eps) = 2, times silu(1).
    np.testing.assert_allclose(slope, 2 / (1 + np.exp(-1)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 0)])
def test_empty(shape):
    x = np.ones(shape, np.float32)
    weight = np.ones(shape[-1:], np.float32)
    y = ops.gated_rms_norm(x, x, weight, groups=2)
    assert y.shape == shape and y.dtype == x.dtype


def test_more_groups_than_a_grid_has():
    x = np.ones((1, 2**16), np.float32)
    with pytest.raises(ValueError, match="at most 65535 groups, got 65536"):
        ops.gated_rms_norm(x, x, x[0], groups=2**16, implementation="triton")
