"""What states and scores make of the tokens of each chunk, either way.

    outputs             O  = scale [ (Q * head) S + A V ]
    values' gradients   dV = scale [ (K * tail) dS + A^T dO ]  (dS unscaled)

One program makes a tile for one chunk and head.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import channel_gates
from seqjax_kernels.decay import gates


@triton.jit
def channel_walk_kernel(
    x,
    w,
    gate,
    starts,
    states,
    scores,
    out,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    READ_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """[B,T,H,V] of x (q or k), w (v or dO), states [B,H,chunks,K,V]."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    TILES: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    vv = (pid % TILES).to(tl.int32) * BV + tl.arange(0, BV)
    pid = pid // TILES
    chunk = (pid % CHUNKS).to(tl.int32)
    b = pid // CHUNKS // H
    h = pid // CHUNKS % H
    rows = tl.arange(0, C)
    ok = chunk * C + rows < T
    later_ok = (chunk * C + rows + 1 < T) & (rows < C - 1)
    first = b * T + chunk * C
    qk = (first * G + h // (H // G)) * K
    vs = (first * H + h) * V
    values = rows[:, None] * (H * V) + vv[None, :]
    in_v = ok[:, None] & (vv[None, :] < V)
    read = tl.zeros([C, BV], tl.float32)
    for start in range(0, K, BK):
        kk = start + tl.arange(0, BK)
        tile = tl.load(
            x + qk + (rows[:, None] * (G * K) + kk[None, :]),
            mask=ok[:, None] & (kk[None, :] < K),
            other=0.0,
        ).to(tl.float32)
        if REVERSE:
            g = channel_gates.channel_gates(
                gate + h * K, starts, first, rows + 1, kk, later_ok, H, K
            )
            tile = tile * tl.exp(tl.cumsum(g, 0, reverse=True))
        else:
            g = channel_gates.channel_gates(
                gate + h * K, starts, first, rows, kk, ok, H, K
            )
            tile = tile * tl.exp(tl.cumsum(g, 0))
        s_tile = tl.load(
            states + pid * (K * V) + (kk[:, None] * V + vv[None, :]),
            mask=(kk[:, None] < K) & (vv[None, :] < V),
            other=0.0,
        )
        read = tl.dot(
            gates.operand(tile * READ_SCALE, DOT),
            gates.operand(s_tile, DOT),
            acc=read,
            input_precision=PRECISION,
        )
    if REVERSE:
        cells = rows[None, :] * C + rows[:, None]
    else:
        cells = rows[:, None] * C + rows[None, :]
    a = tl.load(scores + pid * (C * C) + cells)
    w_tile = tl.load(w + vs + values, mask=in_v, other=0.0)
    made = tl.dot(
        gates.operand(a, DOT),
        gates.operand(w_tile.to(tl.float32) * SCALE, DOT),
        acc=read,
        input_precision=PRECISION,
    )
    tl.store(out + vs + values, made.to(out.dtype.element_ty), mask=in_v)
