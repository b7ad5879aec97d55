"""The three decay tables against values worked out by hand."""

import numpy as np
import pytest

from seqjax.layers import slopes


def test_minimax_eight_heads():
    # 2^-1 .. 2^-8 in the first of three layers; the middle one has half of it.
    table = -slopes.log_decay("minimax", 8, 3)
    halves = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]
    halves.append(0.00390625)
    np.testing.assert_allclose(table[0], halves, rtol=1.1e-5)
    np.testing.assert_allclose(table[1], np.array(halves) / 2, rtol=3e-5)
    # The last layer keeps 1 - 2 / 2.00001 + 1e-5 = 1.5e-5 of it.
    np.testing.assert_allclose(table[2, 0], 0.5 * 1.5e-5, rtol=1e-4)


def test_minimax_takes_one_layer():
    table = -slopes.log_decay("minimax", 4, 1)
    expected = np.array([[0.25, 0.0625, 0.015625, 0.00390625]])
    np.testing.assert_allclose(table, expected, rtol=1.1e-5)


def test_minimax_twelve_heads_is_geometric():
    # 2^(-2/3) = 0.62996052, then each 2^(-2/3) of the one before.
    table = -slopes.log_decay("minimax", 12, 2)
    np.testing.assert_allclose(
        table[0, :4], [0.62996052, 0.39685026, 0.25, 0.15749013], rtol=1.1e-5
    )
    np.testing.assert_allclose(table[0, 11], 2.0**-8, rtol=1.1e-5)


def test_tnl_code_eight_heads():
    table = -slopes.log_decay("tnl_code", 8, 5)
    # Layer 1 of 5: 1 - 1/4 + 1e-5.
    np.testing.assert_allclose(
        table[1, :3], [0.375005, 0.1875025, 0.09375125], rtol=1e-6
    )
    # The last layer: 1e-5 of the base.
    np.testing.assert_allclose(table[4, 0], 5e-6, rtol=1e-6)
    # Its steepest head keeps 0.6065 a token in the first layer.
    np.testing.assert_allclose(np.exp(-table[0, 0]), 0.6065, atol=1e-4)


def test_tnl_code_twelve_heads_interleaves():
    # The eight slopes of H=8, then 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5 of H=16.
    table = -slopes.log_decay("tnl_code", 12, 2)
    base = [0.5**n for n in range(1, 9)]
    base += [0.70710678, 0.35355339, 0.1767767, 0.08838835]
    np.testing.assert_allclose(table[0], np.array(base) * 1.00001, rtol=1e-6)


def test_tnl_paper_eight_heads():
    table = -slopes.log_decay("tnl_paper", 8, 4)
    np.testing.assert_allclose(table[0], [0, 1, 2, 3, 4, 5, 6, 7], rtol=1e-6)
    np.testing.assert_allclose(table[3, 7], 7 / 4, rtol=1e-6)
    # The steepest head keeps 9e-4 a token in the first layer.
    np.testing.assert_allclose(np.exp(-table[0, 7]), 9.1e-4, atol=1e-5)


def test_tnl_paper_twelve_heads():
    table = -slopes.log_decay("tnl_paper", 12, 2)
    np.testing.assert_allclose(
        table[1, [0, 3, 6, 9, 11]], [0, 1, 2, 3, 11 / 3], rtol=1e-6
    )


def test_errors():
    with pytest.raises(ValueError, match=r"slopes must be one of .* got 'tnl'"):
        slopes.log_decay("tnl", 4, 4)
    with pytest.raises(ValueError, match='at least 2 layers, got 1; use "mini'):
        slopes.log_decay("tnl_code", 4, 1)
