"""What states and pairs make of the tokens of each chunk, either way.

    outputs             O  = scale [ head * (Q S) + A V ]        A = (Q K^T) * D
    values' gradients   dV = tail * (K dS) + A^T (scale dO)

One program makes a tile for one chunk and head.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def walk_kernel(
    x,
    y,
    w,
    gate,
    starts,
    states,
    out,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """[B,T,H,V] of x and y (q, k; k, q), w (v; dO), states [B,H,chunks,K,V]."""
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
    qk = (first * G + h // (H // G)) * K
    # Pointers are advanced by scalars of 64 bits, tiles hold 32.
    state = states + pid * (K * V)
    vs = (first * H + h) * V
    values = rows[:, None] * (H * V) + vv[None, :]
    in_v = ok[:, None] & (vv[None, :] < V)

    # Scores of the tokens of x in rows: [i, j], and [j, i] in reverse.
    scores = tl.zeros([C, C], tl.float32)
    read = tl.zeros([C, BV], tl.float32)
    for start in range(0, K, BK):
        kk = start + tl.arange(0, BK)
        x_tile = tl.load(
            x + qk + (rows[:, None] * (G * K) + kk[None, :]),
            mask=ok[:, None] & (kk[None, :] < K),
            other=0.0,
        )
        y_tile = tl.load(
            y + qk + (rows[None, :] * (G * K) + kk[:, None]),
            mask=ok[None, :] & (kk[:, None] < K),
            other=0.0,
        )
        s_tile = tl.load(
            state + (kk[:, None] * V + vv[None, :]),
            mask=(kk[:, None] < K) & (vv[None, :] < V),
            other=0.0,
        )
        x_tile = gates.operand(x_tile, DOT)
        scores = tl.dot(
            x_tile,
            gates.operand(y_tile, DOT),
            acc=scores,
            input_precision=PRECISION,
        )
        read = tl.dot(
            x_tile,
            gates.operand(s_tile, DOT),
            acc=read,
            input_precision=PRECISION,
        )
    pairs, lead = gates.pair_decays(gate, starts, b, h, t, T, H, REVERSE, GATE)
    if REVERSE:
        lead, _ = gates.tail_decays(gate, starts, b, h, t, T, H, GATE)
    w_tile = tl.load(w + vs + values, mask=in_v, other=0.0)
    if REVERSE:
        w_tile = w_tile.to(tl.float32) * SCALE
    made = tl.dot(
        gates.operand(scores * pairs, DOT),
        gates.operand(w_tile, DOT),
        acc=lead[:, None] * read,
        input_precision=PRECISION,
    )
    if not REVERSE:
        made = SCALE * made
    tl.store(out + vs + values, made.to(out.dtype.element_ty), mask=in_v)
