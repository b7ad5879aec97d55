"""Kernels of the gated RMS norm.

    after    y = n weight a(gate),   n = x / rms(x)
    before   y = n weight,           n = u / rms(u), u = x a(gate)

A program makes rows of one of GROUPS groups of N channels, each normalised by
itself.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def _activation(gate, SILU: tl.constexpr):
    """a(gate) and its derivative."""
    small = tl.exp(-tl.abs(gate))
    sigmoid = tl.where(gate >= 0, 1.0, small) / (1.0 + small)
    if SILU:
        a = gate * sigmoid
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    else:
        a = sigmoid
        slope = sigmoid * (1.0 - sigmoid)
    return a, slope


@triton.jit
def _load(a, cells, mask):
    return tl.load(a + cells, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _normalized(u, EPS: tl.constexpr, N: tl.constexpr):
    """n and 1/rms(u), of rows that are 0 outside of N channels."""
    inverse = tl.rsqrt(tl.sum(u * u, 1) / N + EPS)[:, None]
    return u * inverse, inverse


@triton.jit
def forward_kernel(
    x,
    gate,
    weight,
    y,
    R: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    BEFORE: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    """y [B,R,GROUPS*N]."""
    TILES: tl.constexpr = (R + BR - 1) // BR
    pid = tl.program_id(0)
    b = (pid // TILES).to(tl.int64)
    r = pid % TILES * BR + tl.arange(0, BR)
    d = tl.arange(0, BN)
    column = tl.program_id(1) * N + d
    mask = (r < R)[:, None] & (d < N)[None, :]
    cells = (b * R + r)[:, None] * (GROUPS * N) + column[None, :]
    u = _load(x, cells, mask)
    scale = _load(weight, column, d < N)[None, :]
    if gate is not None:
        a, _ = _activation(_load(gate, cells, mask), SILU)
        if BEFORE:
            u = u * a
        else:
            scale = scale * a
    n, _ = _normalized(u, EPS, N)
    tl.store(y + cells, (n * scale).to(y.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    x,
    gate,
    weight,
    y_bar,
    x_bar,
    gate_bar,
    weight_bar,
    R: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    BEFORE: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
    TILES: tl.constexpr,
):
    """x_bar and gate_bar as x; weight_bar [B,RUNS,GROUPS*N] to be summed."""
    RUNS: tl.constexpr = (R + BR * TILES - 1) // (BR * TILES)
    pid = tl.program_id(0)
    b = (pid // RUNS).to(tl.int64)
    run = pid % RUNS
    d = tl.arange(0, BN)
    column = tl.program_id(1) * N + d
    in_d = d < N
    scale = _load(weight, column, in_d)[None, :]
    total = tl.zeros([BR, BN], tl.float32)
    for tile in range(TILES):
        r = (run * TILES + tile) * BR + tl.arange(0, BR)
        mask = (r < R)[:, None] & in_d[None, :]
        cells = (b * R + r)[:, None] * (GROUPS * N) + column[None, :]
        value = _load(x, cells, mask)
        bar = _load(y_bar, cells, mask)
        u = value
        a = tl.zeros([BR, BN], tl.float32) + 1.0
        slope = tl.zeros([BR, BN], tl.float32)
        if gate is not None:
            a, slope = _activation(_load(gate, cells, mask), SILU)
            if BEFORE:
                u = value * a
        n, inverse = _normalized(u, EPS, N)
        if BEFORE:
            n_bar = bar * scale
            term = bar * n
        else:
            n_bar = bar * scale * a
            term = bar * n * a
        # Without EPS, rows behind the last are divided by 0.
        total += tl.where(mask, term, 0.0)
        along = tl.sum(n_bar * n, 1)[:, None] / N
        u_bar = inverse * (n_bar - n * along)
        if BEFORE:
            gate_cell = u_bar * value * slope
            u_bar = u_bar * a
        else:
            gate_cell = bar * n * scale * slope
        tl.store(x_bar + cells, u_bar.to(x_bar.dtype.element_ty), mask=mask)
        tl.store(
            gate_bar + cells,
            gate_cell.to(gate_bar.dtype.element_ty),
            mask=mask,
        )
    cells = (b * RUNS + run) * (GROUPS * N) + column
    tl.store(weight_bar + cells, tl.sum(total, 0), mask=in_d)
