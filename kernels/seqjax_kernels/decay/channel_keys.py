"""Cotangents of queries, keys and channel gates of each chunk.

With S in front of the chunk, dS behind it, dY = scale dO, dA = dY V^T masked
to the tokens that part at a halving (`channel_gates`):

    dQ = head * (dY S^T) + sum of enter * (dA (K * leave)) over halvings
    dK = tail * (V dS^T) + sum of leave * (dA^T (Q * enter))

and the gates receive q * dQ and k * dK of each of these terms, summed over the
tokens whose factors hold them: terms dA * A, never subtracted.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import channel_gates
from seqjax_kernels.decay import gates


@triton.jit
def channel_keys_kernel(
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
    HALVINGS: tl.constexpr,
    SCALE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """dQ, dK [B,T,H,K], dg [B,T,H,K]."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    TILES: tl.constexpr = (K + BK - 1) // BK
    pid = tl.program_id(0).to(tl.int64)
    kk = (pid % TILES).to(tl.int32) * BK + tl.arange(0, BK)
    pid = pid // TILES
    chunk = (pid % CHUNKS).to(tl.int32)
    b = pid // CHUNKS // H
    h = pid // CHUNKS % H
    rows = tl.arange(0, C)
    ok = chunk * C + rows < T
    later_ok = chunk * C + rows + 1 < T
    first = b * T + chunk * C
    qk = (first * G + h // (H // G)) * K
    vs = (first * H + h) * V
    in_k = ok[:, None] & (kk[None, :] < K)
    a_bar = tl.zeros([C, C], tl.float32)
    q_out = tl.zeros([C, BK], tl.float32)
    k_out = tl.zeros([C, BK], tl.float32)
    carried = tl.zeros([BK], tl.float32)
    for start in range(0, V, BV):
        vv = start + tl.arange(0, BV)
        in_v = ok[:, None] & (vv[None, :] < V)
        in_s = (vv[:, None] < V) & (kk[None, :] < K)
        values = rows[:, None] * (H * V) + vv[None, :]
        cells = kk[None, :] * V + vv[:, None]
        y_tile = tl.load(y_bar + vs + values, mask=in_v, other=0.0)
        v_tile = tl.load(v + vs + values, mask=in_v, other=0.0)
        s_tile = tl.load(states + pid * (K * V) + cells, mask=in_s, other=0.0)
        s_bar = tl.load(
            state_bars + pid * (K * V) + cells, mask=in_s, other=0.0
        )
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
        carried += tl.sum(s_tile.to(tl.float32) * s_bar.to(tl.float32), 0)

    keys = rows[:, None] * (G * K) + kk[None, :]
    x = tl.load(q + qk + keys, mask=in_k, other=0.0).to(tl.float32)
    y = tl.load(k + qk + keys, mask=in_k, other=0.0).to(tl.float32)
    g = channel_gates.channel_gates(
        gate + h * K, starts, first, rows, kk, ok, H, K
    )
    later = channel_gates.channel_gates(
        gate + h * K, starts, first, rows + 1, kk, later_ok, H, K
    )
    # The state in front of the chunk and the one behind it.
    q_sum = SCALE * channel_gates.enter_decays(g, C) * q_out
    k_sum = channel_gates.leave_decays(later, C) * k_out
    total = tl.exp(tl.sum(g, 0))
    g_sum = (total * carried)[None, :] + channel_gates.sums_behind(
        x * q_sum, C, DOT, PRECISION
    )
    g_sum += channel_gates.sums_before(y * k_sum, C, DOT, PRECISION)
    # A token and itself, without decay.
    a_bar = SCALE * a_bar
    own = tl.where(rows[:, None] == rows[None, :], a_bar, 0.0)
    own = tl.sum(own, 1)[:, None]
    q_sum += own * y
    k_sum += own * x
    for n in tl.static_range(HALVINGS):
        enter = channel_gates.enter_decays(g, 2**n)
        leave = channel_gates.leave_decays(later, 2**n)
        part = tl.where(channel_gates.parted(C, 2**n), a_bar, 0.0)
        part = gates.operand(part, DOT)
        q_part = enter * tl.dot(
            part, gates.operand(y * leave, DOT), input_precision=PRECISION
        )
        k_part = leave * tl.dot(
            tl.trans(part),
            gates.operand(x * enter, DOT),
            input_precision=PRECISION,
        )
        q_sum += q_part
        k_sum += k_part
        g_sum += channel_gates.sums_behind(x * q_part, 2**n, DOT, PRECISION)
        if n > 0:
            g_sum += channel_gates.sums_before(y * k_part, 2**n, DOT, PRECISION)
    # What is cut off or vanishes has no derivative.
    g_sum = tl.where(g == float("-inf"), 0.0, g_sum)
    out = (first * H + h) * K
    cells = rows[:, None] * (H * K) + kk[None, :]
    tl.store(q_bar + out + cells, q_sum.to(q_bar.dtype.element_ty), mask=in_k)
    tl.store(k_bar + out + cells, k_sum.to(k_bar.dtype.element_ty), mask=in_k)
    tl.store(gate_bar + out + cells, g_sum, mask=in_k)
