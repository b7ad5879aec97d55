"""The pass over chunks that carries the state, in either direction.

    forward    S' = a S + sum_j tail_j x_j y_j^T      x = k, y = v
    reverse    S' = a S + sum_i head_i x_i y_i^T      x = q, y = scale dO

One program carries a tile of one head's state in registers through all chunks,
or through one of `PARTS` runs of chunks, and writes what it holds before each.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def _run(
    state,
    x,
    y,
    gate,
    starts,
    states,
    b,
    h,
    part,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    COUNT: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """(state behind the chunks of a part, their decay)."""
    # One factor, or one a channel.
    if GATE == gates.CHANNEL_GATE:
        decay = tl.zeros([BK, 1], tl.float32) + 1.0
    else:
        decay = tl.sum(tl.zeros([C], tl.float32), 0) + 1.0
    rows = tl.arange(0, C)
    kk = tl.program_id(1) * BK + tl.arange(0, BK)
    vv = tl.program_id(2) * BV + tl.arange(0, BV)
    head = h // (H // G)
    if REVERSE:
        chunk = CHUNKS - 1 - part * COUNT
    else:
        chunk = part * COUNT
    in_state = (kk[:, None] < K) & (vv[None, :] < V)
    cells = kk[:, None] * V + vv[None, :]
    keys = kk[:, None] + rows[None, :] * (G * K)
    values = rows[:, None] * (H * V) + vv[None, :]
    for _ in range(COUNT):
        if states is not None:
            base = ((b * H + h) * CHUNKS + chunk) * (K * V)
            there = in_state & (chunk >= 0) & (chunk < CHUNKS)
            tl.store(
                states + base + cells,
                state.to(states.dtype.element_ty),
                mask=there,
            )
        # A part may end beyond the sequence; nothing there is a token.
        t = chunk * C + rows
        first = b * T + chunk * C
        ok = (t >= 0) & (t < T)
        t = tl.where(ok, t, T)
        if GATE == gates.CHANNEL_GATE:
            factor, total = gates.channel_factors(
                gate + h * K, starts, first, t, kk, T, H, K, REVERSE
            )
        elif REVERSE:
            factor = gates.head_decays(gate, starts, b, h, t, T, H, GATE)
            total = tl.min(factor, 0)
            factor = factor[None, :]
        else:
            factor, total = gates.tail_decays(gate, starts, b, h, t, T, H, GATE)
            factor = factor[None, :]
        x_tile = tl.load(
            x + (first * G + head) * K + keys,
            mask=ok[None, :] & (kk[:, None] < K),
            other=0.0,
        )
        y_tile = tl.load(
            y + (first * H + h) * V + values,
            mask=ok[:, None] & (vv[None, :] < V),
            other=0.0,
        )
        x_tile = x_tile.to(tl.float32) * (SCALE * factor)
        state = tl.dot(
            gates.operand(x_tile, DOT),
            gates.operand(y_tile, DOT),
            acc=total * state,
            input_precision=PRECISION,
        )
        decay = decay * total
        if REVERSE:
            chunk -= 1
        else:
            chunk += 1
    return state, decay


@triton.jit
def states_kernel(
    x,
    y,
    gate,
    starts,
    first,
    part_writes,
    part_decays,
    states,
    last,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """States [B,H,chunks,K,V] before each chunk, and the last [B,H,K,V]."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    COUNT: tl.constexpr = (CHUNKS + PARTS - 1) // PARTS
    pid = tl.program_id(0).to(tl.int64)
    part = (pid % PARTS).to(tl.int32)
    bh = pid // PARTS
    kk = tl.program_id(1) * BK + tl.arange(0, BK)
    vv = tl.program_id(2) * BV + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    cells = kk[:, None] * V + vv[None, :]
    state = tl.load(first + bh * (K * V) + cells, mask=inside, other=0.0)
    state = state.to(tl.float32)
    if PARTS > 1:
        for p in range(PARTS - 1):
            before = p < part
            if GATE == gates.CHANNEL_GATE:
                decay = tl.load(
                    part_decays + (bh * PARTS + p) * K + kk[:, None],
                    mask=kk[:, None] < K,
                    other=0.0,
                )
            else:
                decay = tl.load(part_decays + bh * PARTS + p)
            write = tl.load(
                part_writes + (bh * PARTS + p) * (K * V) + cells,
                mask=inside & before,
                other=0.0,
            )
            state = tl.where(before, decay, 1.0) * state + write
    state, _ = _run(
        state, x, y, gate, starts, states, bh // H, bh % H, part,
        T, G, H, K, V, C, CHUNKS, COUNT, SCALE, GATE, REVERSE, DOT, PRECISION,
        BK, BV,
    )  # fmt: skip
    tl.store(
        last + bh * (K * V) + cells, state, mask=inside & (part == PARTS - 1)
    )


@triton.jit
def parts_kernel(
    x,
    y,
    gate,
    starts,
    part_writes,
    part_decays,
    T: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    SCALE: tl.constexpr,
    GATE: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """The map of each part: writes [B,H,PARTS,K,V], decays [B,H,PARTS(,K)]."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    COUNT: tl.constexpr = (CHUNKS + PARTS - 1) // PARTS
    pid = tl.program_id(0).to(tl.int64)
    part = (pid % PARTS).to(tl.int32)
    bh = pid // PARTS
    kk = tl.program_id(1) * BK + tl.arange(0, BK)
    vv = tl.program_id(2) * BV + tl.arange(0, BV)
    inside = (kk[:, None] < K) & (vv[None, :] < V)
    cells = kk[:, None] * V + vv[None, :]
    state, decay = _run(
        tl.zeros([BK, BV], tl.float32), x, y, gate, starts, None,
        bh // H, bh % H, part,
        T, G, H, K, V, C, CHUNKS, COUNT, SCALE, GATE, REVERSE, DOT, PRECISION,
        BK, BV,
    )  # fmt: skip
    tl.store(part_writes + pid * (K * V) + cells, state, mask=inside)
    if GATE == gates.CHANNEL_GATE:
        one = (kk[:, None] < K) & (tl.program_id(2) == 0)
        tl.store(part_decays + pid * K + kk[:, None], decay, mask=one)
    else:
        one = (tl.program_id(1) == 0) & (tl.program_id(2) == 0)
        tl.store(part_decays + pid, decay, mask=one)
