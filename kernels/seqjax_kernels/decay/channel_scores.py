"""Scores inside each chunk for one gate a key channel.

    A_ij = sum_k q_ik k_jk D_ij,k, i >= j

At each halving of the chunk a product of q * enter and k * leave, of which the
tokens count that part there (`channel_gates`).
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import channel_gates
from seqjax_kernels.decay import gates


@triton.jit
def channel_scores_kernel(
    q,
    k,
    gate,
    starts,
    scores,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    HALVINGS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
):
    """Scores [B,H,chunks,C,C], 0 for i < j; C is 2 ** HALVINGS."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    pid = tl.program_id(0).to(tl.int64)
    chunk = (pid % CHUNKS).to(tl.int32)
    b = pid // CHUNKS // H
    h = pid // CHUNKS % H
    rows = tl.arange(0, C)
    ok = chunk * C + rows < T
    later_ok = chunk * C + rows + 1 < T
    first = b * T + chunk * C
    qk = (first * G + h // (H // G)) * K
    a = tl.zeros([C, C], tl.float32)
    for start in range(0, K, BK):
        kk = start + tl.arange(0, BK)
        keys = rows[:, None] * (G * K) + kk[None, :]
        in_k = ok[:, None] & (kk[None, :] < K)
        x = tl.load(q + qk + keys, mask=in_k, other=0.0).to(tl.float32)
        y = tl.load(k + qk + keys, mask=in_k, other=0.0).to(tl.float32)
        g = channel_gates.channel_gates(
            gate + h * K, starts, first, rows, kk, ok, H, K
        )
        later = channel_gates.channel_gates(
            gate + h * K, starts, first, rows + 1, kk, later_ok, H, K
        )
        own = tl.sum(x * y, 1)
        a += tl.where(rows[:, None] == rows[None, :], own[:, None], 0.0)
        for n in tl.static_range(HALVINGS):
            enter = channel_gates.enter_decays(g, 2**n)
            leave = channel_gates.leave_decays(later, 2**n)
            part = tl.dot(
                gates.operand(x * enter, DOT),
                tl.trans(gates.operand(y * leave, DOT)),
                input_precision=PRECISION,
            )
            a += tl.where(channel_gates.parted(C, 2**n), part, 0.0)
    cells = rows[:, None] * C + rows[None, :]
    tl.store(scores + pid * (C * C) + cells, a.to(scores.dtype.element_ty))
