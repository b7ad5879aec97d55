"""State spaces that remember by Legendre polynomials, and their eigenbases.

    dm/dt = A m + B u

HiPPO-LegS (arXiv 2008.07669) holds the coefficients of all the past, every part
of it scaled to the unit interval; the Legendre memory unit (LMU, NeurIPS 2019)
holds those of the last `theta` units of time:

    u(t - r theta) = sum_i P_i(2 r - 1) m_i(t),   0 <= r <= 1

In an eigenbasis of A a memory is a `linear_recurrence`: the modes of a real A
come in conjugate pairs, of which one is kept, and m is twice the real part.

S5 (arXiv 2208.04933) starts from the normal part of LegS, whose basis is
unitary.  The LMU is far from normal: its basis has condition 18, 2.8e3, 5e5 for
order 4, 8, 12, and 13 times that for every two more, so that float32 holds the
memory to 1e-6, 2e-4, 3e-2.  Beyond 12 it is refused; larger memories need the
dense matrix.

Everything is numpy in float64, and no random number is drawn.
"""

from typing import NamedTuple

import numpy as np

MOST_LMU = 12


class Modes(NamedTuple):
    """A real matrix as 2 Re(basis diag(eigenvalues) inverse).

    Attributes:
      eigenvalues: complex [P], P = N/2, imaginary part > 0, real part < 0.
      basis: complex [N, P].
      inverse: complex [P, N].
    """

    eigenvalues: np.ndarray
    basis: np.ndarray
    inverse: np.ndarray


class Memory(NamedTuple):
    """A memory as an elementwise recurrence over tokens.

    h, _ = linear_recurrence(u[..., None] * write, log_decay);
    m = Re(h @ read.T)

    Attributes:
      log_decay: complex [P].
      write: complex [P].
      read: complex [N, P].
    """

    log_decay: np.ndarray
    write: np.ndarray
    read: np.ndarray


def legs(order: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS: A [N, N] and B [N] for N = order.

    A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above;
    B_n = sqrt(2n+1).
    """
    _check_order(order)
    n = np.arange(order)
    p = np.sqrt(2 * n + 1)
    return -(np.tril(np.outer(p, p)) - np.diag(n)), p


def lmu(order: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Legendre memory of the last `theta` units: A [N, N], B [N], N = order.

    A_ij = (2i+1)/theta * (-1 if i < j else (-1)^(i-j+1));
    B_i = (2i+1)/theta * (-1)^i.
    """
    _check_order(order)
    if not (np.isfinite(theta) and theta > 0):
        raise ValueError(f"theta must be finite and above 0, got {theta}")
    i, j = np.arange(order)[:, None], np.arange(order)[None]
    rate = (2 * i + 1) / theta
    A = rate * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    return A, rate[:, 0] * (-1.0) ** np.arange(order)


def legs_modes(order: int, blocks: int = 1) -> Modes:
    """Modes of LegS without its rank-one part, S5's first state matrix.

    A + P P^T with P_n = sqrt(n + 1/2) is -1/2 on the diagonal and skew beside
    it: the basis is unitary, and every eigenvalue has real part -1/2.

    Args:
      order: N, even; of all blocks together.
      blocks: J, equal blocks on the diagonal, each of even order N / J.

    Returns:
      `Modes` with P = N / 2.
    """
    _check_blocks(order, blocks)
    size = order // blocks
    A, p = legs(size)
    skew = A + np.outer(p, p) / 2 + np.eye(size) / 2
    imaginary, basis = np.linalg.eigh(-1j * skew)
    kept = imaginary > 0
    basis = basis[:, kept]
    eye = np.eye(blocks)
    return Modes(
        np.tile(-0.5 + 1j * imaginary[kept], blocks),
        np.kron(eye, basis),
        np.kron(eye, basis.conj().T),
    )


def lmu_modes(order: int, theta: float) -> Modes:
    """Modes of the Legendre memory.

    Args:
      order: N, even and at most 12 (see the top of this file).
      theta: length of the window, in units of time.

    Returns:
      `Modes` with P = N / 2.
    """
    _check_blocks(order, 1)
    if order > MOST_LMU:
        raise ValueError(
            f"order must be at most {MOST_LMU}, got {order}: float32 does not"
            " hold a larger Legendre memory in its eigenbasis; use the matrix"
            " of lmu, or legs_modes"
        )
    A, _ = lmu(order, theta)
    # In the basis of normalised polynomials it is better conditioned.
    scale = np.sqrt(2 * np.arange(order) + 1)
    eigenvalues, basis = np.linalg.eig(A * scale[None] / scale[:, None])
    inverse = np.linalg.inv(basis)
    kept = np.flatnonzero(np.imag(eigenvalues) > 0)
    kept = kept[np.argsort(np.imag(eigenvalues)[kept])]
    return Modes(
        eigenvalues[kept],
        scale[:, None] * basis[:, kept],
        inverse[kept] / scale[None],
    )


def legendre_memory(order: int, theta: float) -> Memory:
    """The Legendre memory unit as an elementwise recurrence.

    Its input is held for one token, a unit of time (zero-order hold).

    Args:
      order: N, even and at most 12.
      theta: length of the window in tokens.

    Returns:
      `Memory` of N / 2 modes.
    """
    modes = lmu_modes(order, theta)
    _, B = lmu(order, theta)
    rate = modes.eigenvalues
    write = np.expm1(rate) / rate * (modes.inverse @ B)
    return Memory(rate, write, 2 * modes.basis)


def _check_order(order):
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")


def _check_blocks(order, blocks):
    if blocks < 1 or order < 2 * blocks or order % (2 * blocks):
        raise ValueError(
            "order must be a positive multiple of 2 * blocks, got"
            f" order={order} and blocks={blocks}"
        )
