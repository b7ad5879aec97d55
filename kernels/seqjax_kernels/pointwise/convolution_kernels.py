"""Kernels of the short convolution.

    z_t = bias + sum_j weight[W-1-j] u[source_j(t)],  y_t = act(z_t)

u is the initial state followed by x.  A place in it is written as a time: 0 to
T-1 in x, -(W-1) to -1 in the initial state, less than that for nothing.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def _sigmoid(z):
    small = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _rows(
    x,
    initial,
    b,
    s,
    inside,
    d,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """Rows of u [S, BD] in float32 at places s [S]; 0 for nothing."""
    in_d = (d < D)[None, :]
    new = inside & (s >= 0)
    cells = (b * T + s)[:, None] * D + d[None, :]
    u = tl.load(x + cells, mask=new[:, None] & in_d, other=0.0).to(tl.float32)
    if initial is not None:
        old = inside & (s < 0) & (s >= 1 - W)
        cells = (b * (W - 1) + s + (W - 1))[:, None] * D + d[None, :]
        first = tl.load(initial + cells, mask=old[:, None] & in_d, other=0.0)
        u = tl.where(old[:, None], first.to(tl.float32), u)
    return u


@triton.jit
def _source(sources, b, t, inside, j, T: tl.constexpr, W: tl.constexpr):
    """Places [S] that tap j of tokens t [S] looks at."""
    if sources is None:
        s = t - j
    else:
        s = tl.load(sources + (b * T + t) * W + j, mask=inside, other=-W)
    return s


@triton.jit
def _sums(
    x,
    weight,
    bias,
    initial,
    sources,
    b,
    t,
    inside,
    d,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """z [S, BD] at tokens t [S]."""
    in_d = d < D
    z = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    if bias is not None:
        z += tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(W):
        s = _source(sources, b, t, inside, j, T, W)
        tap = tl.load(weight + (W - 1 - j) * D + d, mask=in_d, other=0.0)
        u = _rows(x, initial, b, s, inside, d, T, D, W)
        z += tap.to(tl.float32)[None, :] * u
    return z


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    initial,
    sources,
    y,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """y [B,T,D]; a token of padding, whose own source is nothing, gets 0."""
    TILES: tl.constexpr = (T + BT - 1) // BT
    pid = tl.program_id(0)
    b = (pid // TILES).to(tl.int64)
    t = pid % TILES * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = t < T
    z = _sums(x, weight, bias, initial, sources, b, t, inside, d, T, D, W)
    if SILU:
        z = z * _sigmoid(z)
    if sources is not None:
        real = _source(sources, b, t, inside, 0, T, W) >= 0
        z = tl.where(real[:, None], z, 0.0)
    cells = (b * T + t)[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(y + cells, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums_bar(
    x,
    weight,
    bias,
    initial,
    sources,
    y_bar,
    b,
    t,
    inside,
    d,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
):
    """Cotangent of z [S, BD] at tokens t [S], 0 outside."""
    cells = (b * T + t)[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    z_bar = tl.load(y_bar + cells, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        z = _sums(x, weight, bias, initial, sources, b, t, inside, d, T, D, W)
        gate = _sigmoid(z)
        z_bar = z_bar * gate * (1.0 + z * (1.0 - gate))
    if sources is not None:
        real = _source(sources, b, t, inside, 0, T, W) >= 0
        z_bar = tl.where(real[:, None], z_bar, 0.0)
    return z_bar


@triton.jit
def _rows_bar(
    x,
    weight,
    bias,
    initial,
    sources,
    targets,
    y_bar,
    state_bar,
    b,
    s,
    inside,
    d,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
):
    """Cotangent of u [S, BD] at places s [S]: of its tokens, of the state."""
    in_d = d < D
    place = (b * (T + W - 1) + s + (W - 1)) * (W + 1)
    u_bar = tl.zeros([s.shape[0], d.shape[0]], tl.float32)
    for j in tl.static_range(W):
        if targets is None:
            t = s + j
        else:
            t = tl.load(targets + place + j, mask=inside, other=-1)
        there = inside & (t >= 0) & (t < T)
        tap = tl.load(weight + (W - 1 - j) * D + d, mask=in_d, other=0.0)
        z_bar = _sums_bar(
            x, weight, bias, initial, sources, y_bar, b, t, there, d,
            T, D, W, SILU,
        )  # fmt: skip
        u_bar += tap.to(tl.float32)[None, :] * z_bar
    if W > 1:
        if targets is None:
            slot = s + (W - 1) - T
        else:
            slot = tl.load(targets + place + W, mask=inside, other=-1)
        kept = (inside & (slot >= 0))[:, None] & in_d[None, :]
        cells = (b * (W - 1) + slot)[:, None] * D + d[None, :]
        u_bar += tl.load(state_bar + cells, mask=kept, other=0.0).to(tl.float32)
    return u_bar


@triton.jit
def backward_kernel(
    x,
    weight,
    bias,
    initial,
    sources,
    targets,
    y_bar,
    state_bar,
    x_bar,
    sums_bar,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BW: tl.constexpr,
    TILES: tl.constexpr,
):
    """x_bar [B,T,D]; sums_bar [B,RUNS,W+1,D], of weight and last of bias.

    A program makes one run of TILES tiles of BT tokens.
    """
    RUNS: tl.constexpr = (T + BT * TILES - 1) // (BT * TILES)
    pid = tl.program_id(0)
    b = (pid // RUNS).to(tl.int64)
    run = pid % RUNS
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = d < D
    w = tl.arange(0, BW)
    sums = tl.zeros([BW, BD], tl.float32)
    for tile in range(TILES):
        t = (run * TILES + tile) * BT + tl.arange(0, BT)
        inside = t < T
        z_bar = _sums_bar(
            x, weight, bias, initial, sources, y_bar, b, t, inside, d,
            T, D, W, SILU,
        )  # fmt: skip
        sums += tl.where((w == W)[:, None], tl.sum(z_bar, 0)[None, :], 0.0)
        for j in tl.static_range(W):
            s = _source(sources, b, t, inside, j, T, W)
            u = _rows(x, initial, b, s, inside, d, T, D, W)
            tap_bar = tl.sum(z_bar * u, 0)
            row = (w == W - 1 - j)[:, None]
            sums += tl.where(row, tap_bar[None, :], 0.0)
        u_bar = _rows_bar(
            x, weight, bias, initial, sources, targets, y_bar, state_bar, b, t,
            inside, d, T, D, W, SILU,
        )  # fmt: skip
        cells = (b * T + t)[:, None] * D + d[None, :]
        mask = inside[:, None] & in_d[None, :]
        tl.store(x_bar + cells, u_bar.to(x_bar.dtype.element_ty), mask=mask)
    row = b * RUNS + run
    cells = (row * (W + 1) + w)[:, None] * D + d[None, :]
    tl.store(sums_bar + cells, sums, mask=(w <= W)[:, None] & in_d[None, :])


@triton.jit
def initial_kernel(
    x,
    weight,
    bias,
    initial,
    sources,
    targets,
    y_bar,
    state_bar,
    initial_bar,
    T: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    SILU: tl.constexpr,
    BD: tl.constexpr,
    BW: tl.constexpr,
):
    """initial_bar [B,W-1,D]."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    s = tl.arange(0, BW) - (W - 1)
    inside = s < 0
    u_bar = _rows_bar(
        x, weight, bias, initial, sources, targets, y_bar, state_bar, b, s,
        inside, d, T, D, W, SILU,
    )  # fmt: skip
    cells = (b * (W - 1) + s + (W - 1))[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(initial_bar + cells, u_bar, mask=mask)
