"""Cotangents of queries, keys and gates of each chunk.

With S in front of the chunk, dS behind it, dY = scale dO, A = (Q K^T) * D and
dA = dY V^T:

    dQ = head * (dY S^T) + (dA * D) K       dK = tail * (V dS^T) + (dA * D)^T Q
    dg_t = sum over i >= t > j of dA_ij A_ij, and of what leads out of the chunk

One program makes a tile of the keys' for one chunk and the value heads of one
key head, or a share of these, with the part of dg that its keys have in it.
That is a sum of terms dA * A, cumulative along rows and never subtracted.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def _gate_gradient(
    pair_bars,
    head_bar,
    leaving,
    carried,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients [C] of the gates, that of token s + 1 at s, the first last.

    Column s sums what the gate of token s + 1 stands in: pairs i > s >= j,
    reads of the state by tokens i > s, writes to it by tokens j <= s, and the
    state itself.
    """
    C: tl.constexpr = head_bar.shape[0]
    rows = tl.arange(0, C)
    below = rows[:, None] > rows[None, :]
    sums = gates.row_sums(tl.where(below, pair_bars, 0.0), DOT, PRECISION)
    sums = tl.where(below, sums + head_bar[:, None], 0.0)
    sums = tl.sum(sums, 0) + tl.cumsum(leaving, 0)
    return carried + tl.where(rows == C - 1, tl.sum(head_bar, 0), sums)


@triton.jit
def _put(pointers, x, mask):
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def key_gradients_kernel(
    q,
    k,
    v,
    gate,
    starts,
    states,
    y_bar,
    state_bars,
    q_bar,
    k_bar,
    gate_bar,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    SHARES: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """dQ, dK [SHARES,B,T,G,K], dg [tiles of K,B,T,H] or None."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    TILES: tl.constexpr = (K + BK - 1) // BK
    EACH: tl.constexpr = H // (G * SHARES)  # value heads
    pid = tl.program_id(0).to(tl.int64)
    tile = (pid % TILES).to(tl.int32)
    pid = pid // TILES
    share = (pid % SHARES).to(tl.int32)
    group = (pid // SHARES % G).to(tl.int32)
    pid = pid // SHARES // G
    chunk = (pid % CHUNKS).to(tl.int32)
    b = pid // CHUNKS
    batch = tl.num_programs(0).to(tl.int64) // (TILES * SHARES * G * CHUNKS)
    rows = tl.arange(0, C)
    kk = tile * BK + tl.arange(0, BK)
    t = chunk * C + rows
    ok = t < T
    first = b * T + chunk * C
    # Pointers are advanced by scalars of 64 bits, tiles hold 32.
    qk = (first * G + group) * K
    out = qk + share * (batch * T) * (G * K)
    keys = rows[:, None] * (G * K) + kk[None, :]
    in_k = ok[:, None] & (kk[None, :] < K)
    q_sum = tl.zeros([C, BK], tl.float32)
    k_sum = tl.zeros([C, BK], tl.float32)

    for r in tl.range(EACH, num_stages=1):
        h = group * (H // G) + share * EACH + r
        head = gates.head_decays(gate, starts, b, h, t, T, H, GATE)
        tail, total = gates.tail_decays(gate, starts, b, h, t, T, H, GATE)
        a_bar = tl.zeros([C, C], tl.float32)
        q_out = tl.zeros([C, BK], tl.float32)
        k_out = tl.zeros([C, BK], tl.float32)
        carried = 0.0
        vs = (first * H + h) * V
        ss = ((b * H + h) * CHUNKS + chunk) * (K * V)
        for start in range(0, V, BV):
            vv = start + tl.arange(0, BV)
            in_v = ok[:, None] & (vv[None, :] < V)
            in_s = (vv[:, None] < V) & (kk[None, :] < K)
            values = rows[:, None] * (H * V) + vv[None, :]
            cells = kk[None, :] * V + vv[:, None]
            y_tile = tl.load(y_bar + vs + values, mask=in_v, other=0.0)
            v_tile = tl.load(v + vs + values, mask=in_v, other=0.0)
            s_tile = tl.load(states + ss + cells, mask=in_s, other=0.0)
            s_bar = tl.load(state_bars + ss + cells, mask=in_s, other=0.0)
            y_dot = gates.operand(y_tile, DOT)
            v_dot = gates.operand(v_tile, DOT)
            a_bar = tl.dot(
                y_dot, tl.trans(v_dot), acc=a_bar, input_precision=PRECISION
            )
            q_out = tl.dot(
                y_dot,
                gates.operand(s_tile, DOT),
                acc=q_out,
                input_precision=PRECISION,
            )
            k_out = tl.dot(
                v_dot,
                gates.operand(s_bar, DOT),
                acc=k_out,
                input_precision=PRECISION,
            )
            if gate_bar is not None:
                carried += tl.sum(s_tile.to(tl.float32) * s_bar.to(tl.float32))
        pairs, _ = gates.pair_decays(gate, starts, b, h, t, T, H, False, GATE)
        q_out = (SCALE * head)[:, None] * q_out
        k_out = tail[:, None] * k_out
        a_bar = SCALE * a_bar * pairs
        q_tile = tl.load(q + qk + keys, mask=in_k, other=0.0)
        k_tile = tl.load(k + qk + keys, mask=in_k, other=0.0)
        q_dot = gates.operand(q_tile, DOT)
        k_dot = gates.operand(k_tile, DOT)
        head_bar = tl.sum(q_out * q_tile.to(tl.float32), 1)
        leaving = tl.sum(k_out * k_tile.to(tl.float32), 1)
        b_dot = gates.operand(a_bar, DOT)
        q_sum += tl.dot(b_dot, k_dot, acc=q_out, input_precision=PRECISION)
        k_sum += tl.dot(
            tl.trans(b_dot), q_dot, acc=k_out, input_precision=PRECISION
        )
        if EACH == 1:
            # Before the gates, which then have their registers.
            tl.store(
                q_bar + out + keys, q_sum.to(q_bar.dtype.element_ty), mask=in_k
            )
            tl.store(
                k_bar + out + keys, k_sum.to(k_bar.dtype.element_ty), mask=in_k
            )
        if gate_bar is not None:
            scores = tl.dot(q_dot, tl.trans(k_dot), input_precision=PRECISION)
            sums = _gate_gradient(
                a_bar * scores,
                head_bar,
                leaving,
                total * carried,
                DOT,
                PRECISION,
            )
            t_next = chunk * C + (rows + 1) % C
            g = gates.token_gates(
                gate, starts, b, h, t_next, t_next < T, T, H, GATE
            )
            # What is cut off or vanishes has no derivative.
            sums = tl.where(g == float("-inf"), 0.0, sums)
            base = ((tile * batch + b) * T).to(tl.int64)
            tl.store(gate_bar + (base + t_next) * H + h, sums, mask=t_next < T)
    if EACH > 1:
        tl.store(
            q_bar + out + keys, q_sum.to(q_bar.dtype.element_ty), mask=in_k
        )
        tl.store(
            k_bar + out + keys, k_sum.to(k_bar.dtype.element_ty), mask=in_k
        )
