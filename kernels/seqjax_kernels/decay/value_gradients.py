"""Cotangents of the values of each chunk, from that of the state behind it.

    dV = tail * (K dS) + A^T dY         A = (Q K^T) * D, dY = scale dO

One program makes a tile of them for one chunk and head.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def value_gradients_kernel(
    q,
    k,
    gate,
    starts,
    y_bar,
    state_bars,
    v_bar,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """dV [B,T,H,V]; `state_bars` [B,H,chunks,K,V]."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    TILES: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    vv = (pid % TILES).to(tl.int32) * BV + tl.arange(0, BV)
    pid = pid // TILES
    chunk = (pid % CHUNKS).to(tl.int32)
    b = pid // CHUNKS // H
    h = pid // CHUNKS % H
    rows = tl.arange(0, C)
    t = chunk * C + rows
    ok = t < T
    first = b * T + chunk * C
    # Pointers are advanced by scalars of 64 bits, tiles hold 32.
    qk = (first * G + h // (H // G)) * K
    state = state_bars + pid * (K * V)
    vs = (first * H + h) * V
    values = rows[:, None] * (H * V) + vv[None, :]
    in_v = ok[:, None] & (vv[None, :] < V)

    # Scores transposed: [j, i].
    scores = tl.zeros([C, C], tl.float32)
    out = tl.zeros([C, BV], tl.float32)
    for start in range(0, K, BK):
        kk = start + tl.arange(0, BK)
        k_tile = tl.load(
            k + qk + (rows[:, None] * (G * K) + kk[None, :]),
            mask=ok[:, None] & (kk[None, :] < K),
            other=0.0,
        )
        q_tile = tl.load(
            q + qk + (rows[None, :] * (G * K) + kk[:, None]),
            mask=ok[None, :] & (kk[:, None] < K),
            other=0.0,
        )
        s_tile = tl.load(
            state + (kk[:, None] * V + vv[None, :]),
            mask=(kk[:, None] < K) & (vv[None, :] < V),
            other=0.0,
        )
        k_tile = gates.operand(k_tile, DOT)
        scores = tl.dot(
            k_tile,
            gates.operand(q_tile, DOT),
            acc=scores,
            input_precision=PRECISION,
        )
        out = tl.dot(
            k_tile,
            gates.operand(s_tile, DOT),
            acc=out,
            input_precision=PRECISION,
        )
    pairs, _ = gates.pair_decays(gate, starts, b, h, t, T, H, True, GATE)
    tail, _ = gates.tail_decays(gate, starts, b, h, t, T, H, GATE)
    y_tile = tl.load(y_bar + vs + values, mask=in_v, other=0.0)
    out = tl.dot(
        gates.operand(scores * pairs, DOT),
        gates.operand(y_tile.to(tl.float32) * SCALE, DOT),
        acc=tail[:, None] * out,
        input_precision=PRECISION,
    )
    out = out.to(v_bar.dtype.element_ty)
    tl.store(v_bar + vs + values, out, mask=in_v)
