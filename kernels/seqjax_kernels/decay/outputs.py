"""Outputs of the tokens of each chunk, from the state in front of it.

    O = scale [ head * (Q S) + ((Q K^T) * D) V ]

One program makes a tile of the outputs of one chunk and head.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def outputs_kernel(
    q,
    k,
    v,
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
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Outputs [B,T,H,V]; `states` [B,H,chunks,K,V]."""
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

    scores = tl.zeros([C, C], tl.float32)
    read = tl.zeros([C, BV], tl.float32)
    for start in range(0, K, BK):
        kk = start + tl.arange(0, BK)
        q_tile = tl.load(
            q + qk + (rows[:, None] * (G * K) + kk[None, :]),
            mask=ok[:, None] & (kk[None, :] < K),
            other=0.0,
        )
        k_tile = tl.load(
            k + qk + (rows[None, :] * (G * K) + kk[:, None]),
            mask=ok[None, :] & (kk[:, None] < K),
            other=0.0,
        )
        s_tile = tl.load(
            state + (kk[:, None] * V + vv[None, :]),
            mask=(kk[:, None] < K) & (vv[None, :] < V),
            other=0.0,
        )
        q_tile = gates.operand(q_tile, DOT)
        scores = tl.dot(
            q_tile,
            gates.operand(k_tile, DOT),
            acc=scores,
            input_precision=PRECISION,
        )
        read = tl.dot(
            q_tile,
            gates.operand(s_tile, DOT),
            acc=read,
            input_precision=PRECISION,
        )
    pairs, head = gates.pair_decays(gate, starts, b, h, t, T, H, False, GATE)
    v_tile = tl.load(v + vs + values, mask=in_v, other=0.0)
    y = tl.dot(
        gates.operand(scores * pairs, DOT),
        gates.operand(v_tile, DOT),
        acc=head[:, None] * read,
        input_precision=PRECISION,
    )
    y = (SCALE * y).to(out.dtype.element_ty)
    tl.store(out + vs + values, y, mask=in_v)
