"""HiPPO and Legendre memories against closed forms and the dense recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from seqjax.layers import hippo

ORDER, THETA, T = 8, 40.0, 150


def _matrix(modes):
    scaled = modes.basis * modes.eigenvalues
    return 2 * (scaled @ modes.inverse).real


def test_legs_is_its_closed_form():
    A, B = hippo.legs(4)
    root = np.sqrt([1.0, 3.0, 5.0, 7.0])
    for n in range(4):
        for k in range(4):
            value = -root[n] * root[k] if n > k else 0.0
            assert A[n, k] == pytest.approx(-(n + 1) if n == k else value)
    np.testing.assert_allclose(B, root)


def test_modes_of_legs_are_its_normal_part():
    A, B = hippo.legs(16)
    modes = hippo.legs_modes(16)
    np.testing.assert_allclose(_matrix(modes), A + np.outer(B, B) / 2)
    unitary = modes.inverse @ modes.basis
    np.testing.assert_allclose(unitary, np.eye(8), atol=1e-13)
    np.testing.assert_array_equal(modes.eigenvalues.real, -0.5)
    blocks = hippo.legs_modes(16, blocks=2)
    half = _matrix(hippo.legs_modes(8))
    np.testing.assert_allclose(
        _matrix(blocks), np.kron(np.eye(2), half), atol=1e-13
    )


def test_lmu_is_its_closed_form():
    A, B = hippo.lmu(3, 2.0)
    np.testing.assert_array_equal(
        A * 2, [[-1, -1, -1], [3, -3, -3], [-5, 5, -5]]
    )
    np.testing.assert_array_equal(B * 2, [1, -3, 5])


@pytest.mark.parametrize("order,bound", [(2, 1e-14), (8, 1e-10), (12, 1e-6)])
def test_modes_of_the_lmu(order, bound):
    A, _ = hippo.lmu(order, THETA)
    modes = hippo.lmu_modes(order, THETA)
    np.testing.assert_allclose(
        _matrix(modes), A, atol=bound * np.abs(A).max(), rtol=0
    )
    assert (modes.eigenvalues.real < 0).all()


def _expm(A):
    """Scaling by 2^-10 and squaring; A is small."""
    step, term = np.eye(len(A)), np.eye(len(A))
    for n in range(1, 12):
        term = term @ A / 1024 / n
        step = step + term
    return np.linalg.matrix_power(step, 1024)


def _dense(u):
    """m_t = expm(A) m_{t-1} + A^-1 (expm(A) - 1) B u_t, token by token."""
    A, B = hippo.lmu(ORDER, THETA)
    decay = _expm(A)
    write = np.linalg.solve(A, (decay - np.eye(ORDER)) @ B)
    m, out = np.zeros(ORDER), []
    for value in u:
        m = decay @ m + write * value
        out.append(m)
    return np.stack(out)


@pytest.mark.parametrize("wide", [False, True])
def test_memory_equals_the_dense_recurrence(wide):
    memory = hippo.legendre_memory(ORDER, THETA)
    u = np.random.default_rng(0).normal(size=T)
    expected = _dense(u)
    with jax.enable_x64(wide):
        dtype = jnp.complex128 if wide else jnp.complex64
        log_decay, write, read = (jnp.asarray(x, dtype) for x in memory)
        h, _ = ops.linear_recurrence(
            jnp.asarray(u, dtype)[None, :, None] * write[None, None],
            log_decay,
        )
        m = np.asarray((h[0] @ read.T).real)
    error = np.abs(m - expected).max() / np.abs(expected).max()
    assert error < (1e-9 if wide else 5e-4)


def test_memory_recalls_the_window():
    """A slow signal comes back from any delay within theta."""
    t = np.arange(T)
    u = np.sin(2 * np.pi * t / 60) + 0.3 * np.cos(2 * np.pi * t / 35)
    m = _dense(u)
    for r in (0.25, 0.5, 0.75):
        polynomials = np.polynomial.legendre.legvander([2 * r - 1], ORDER - 1)
        recalled = m @ polynomials[0]
        delay = int(r * THETA)
        # Held for a token each, two inputs meet at a whole delay.
        late = (u[80 - delay : T - delay] + u[81 - delay : T + 1 - delay]) / 2
        assert np.abs(recalled[80:] - late).max() < 0.05


def test_errors():
    for call, words in (
        (lambda: hippo.legs(0), "order must be at least 1, got 0"),
        (lambda: hippo.legs_modes(6, 2), "order=6 and blocks=2"),
        (lambda: hippo.lmu_modes(7, 1.0), "order=7"),
        (lambda: hippo.lmu_modes(14, 1.0), "at most 12, got 14"),
        (lambda: hippo.lmu(4, 0.0), "theta must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
