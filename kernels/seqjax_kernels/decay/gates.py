"""Decays inside a chunk, for kernels with one gate a token and head.

A start of a document and a gate of -inf are factors of exactly 0.  Sums that
are only ever exponentiated, from one end of the chunk, hold them as -inf:
numbers <= 0 are added to it and never subtracted.  Differences are taken of
sums carried as two floats, which begin anew behind every zero, and a count of
zeros tells which pairs have one in between (see `pair_decays`).
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

# What `GATE` of the kernels says of the array of gates.
NO_GATE = tl.constexpr(0)
HEAD_GATE = tl.constexpr(1)  # [H]
TOKEN_GATE = tl.constexpr(2)  # [B, T, H]
CHANNEL_GATE = tl.constexpr(3)  # [B, T, H, K]

# A gate below is a factor of exactly 0, as -inf is; two of -3e38 would overflow
# a sum of finite numbers.
LEAST = tl.constexpr(-1e30)


@triton.jit
def vanishing(g):
    """Gates, those whose factor is 0 as -inf."""
    return tl.where(g < LEAST, float("-inf"), g)


@triton.jit
def token_gates(gate, starts, b, h, t, inside, T, H, GATE: tl.constexpr):
    """Gates [C] of tokens t, -inf where a document starts, 0 outside."""
    if GATE == TOKEN_GATE:
        g = tl.load(gate + (b * T + t) * H + h, mask=inside, other=0.0)
        g = vanishing(g.to(tl.float32))
    elif GATE == HEAD_GATE:
        g = vanishing(tl.load(gate + h).to(tl.float32))
        g = tl.where(inside, g, 0.0)
    else:
        g = tl.zeros(t.shape, tl.float32)
    if starts is not None:
        cut = tl.load(starts + b * T + t, mask=inside, other=0)
        g = tl.where(cut != 0, float("-inf"), g)
    return g


@triton.jit
def head_decays(gate, starts, b, h, t, T, H, GATE: tl.constexpr):
    """Decays [C] from in front of the chunk through each token."""
    g = token_gates(gate, starts, b, h, t, t < T, T, H, GATE)
    return tl.exp(tl.cumsum(g, 0))


@triton.jit
def tail_decays(gate, starts, b, h, t, T, H, GATE: tl.constexpr):
    """(decays [C] from behind each token to the chunk's end, of the chunk)."""
    C: tl.constexpr = t.shape[0]
    later = (tl.arange(0, C) < C - 1) & (t + 1 < T)
    g = token_gates(gate, starts, b, h, t + 1, later, T, H, GATE)
    tail = tl.exp(tl.cumsum(g, 0, reverse=True))
    g = token_gates(gate, starts, b, h, t, t < T, T, H, GATE)
    return tail, tl.exp(tl.sum(g, 0))


@triton.jit
def channel_factors(gate, starts, row, t, kk, T, H, K, REVERSE: tl.constexpr):
    """(decays [BK, C] by channel and token, of the chunk [BK, 1]).

    From in front of the chunk through each token where `REVERSE`, else from
    behind each token to the chunk's end.  `row` counts tokens up to the chunk,
    `t` are its times, beyond T where there is none; `gate` points to the head.
    """
    C: tl.constexpr = t.shape[0]
    rows = tl.arange(0, C)
    cells = kk[:, None] + rows[None, :] * (H * K)
    mask = (t < T)[None, :] & (kk[:, None] < K)
    g = tl.load(gate + row * (H * K) + cells, mask=mask, other=0.0)
    g = vanishing(g.to(tl.float32))
    if starts is not None:
        cut = tl.load(starts + row + rows, mask=t < T, other=0)
        g = tl.where((cut != 0)[None, :], float("-inf"), g)
    total = tl.exp(tl.sum(g, 1))[:, None]
    if REVERSE:
        return tl.exp(tl.cumsum(g, 1)), total
    else:
        later = (t + 1 < T) & (rows < C - 1)
        mask = later[None, :] & (kk[:, None] < K)
        g = tl.load(gate + (row + 1) * (H * K) + cells, mask=mask, other=0.0)
        g = vanishing(g.to(tl.float32))
        if starts is not None:
            cut = tl.load(starts + row + 1 + rows, mask=later, other=0)
            g = tl.where((cut != 0)[None, :], float("-inf"), g)
        return tl.exp(tl.cumsum(g, 1, reverse=True)), total


@triton.jit
def _after(high, low, zeros, later_high, later_low, later_zeros):
    """The sum of a run of gates and of the run behind it."""
    total = high + later_high
    part = total - high
    error = (high - (total - part)) + (later_high - part)
    rest = low + later_low + error
    renewed = total + rest
    rest = rest - (renewed - total)
    anew = later_zeros > 0
    return (
        tl.where(anew, later_high, renewed),
        tl.where(anew, later_low, rest),
        zeros + later_zeros,
    )


@triton.jit
def pair_decays(
    gate, starts, b, h, t, T, H, FLIP: tl.constexpr, GATE: tl.constexpr
):
    """(pairs [C, C], head [C]): D_ij for i >= j, 0 elsewhere; see above.

    Pairs stand at [i, j], or at [j, i] where `FLIP`.
    """
    C: tl.constexpr = t.shape[0]
    rows = tl.arange(0, C)
    if FLIP:
        keep = rows[:, None] <= rows[None, :]
    else:
        keep = rows[:, None] >= rows[None, :]
    g = token_gates(gate, starts, b, h, t, t < T, T, H, GATE)
    zero = g == float("-inf")
    zeros = tl.cumsum(zero.to(tl.int32), 0)
    if GATE == NO_GATE:
        if starts is not None:
            keep = keep & (zeros[:, None] == zeros[None, :])
        pairs = tl.where(keep, 1.0, 0.0)
        head = tl.where(zeros == 0, 1.0, 0.0)
    else:
        keep = keep & (zeros[:, None] == zeros[None, :])
        finite = tl.where(zero, 0.0, g)
        high, low, _ = tl.associative_scan(
            (finite, tl.zeros_like(finite), zero.to(tl.int32)), 0, _after
        )
        sums = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
        if FLIP:
            sums = -sums
        # Mask before exp: elsewhere a sum may be positive and overflow.
        pairs = tl.where(keep, tl.exp(tl.where(keep, sums, 0.0)), 0.0)
        head = tl.where(zeros == 0, tl.exp(high), 0.0)
    return pairs, head


@triton.jit
def operand(x, DOT: tl.constexpr):
    """`x` as an operand of a matrix product, "bf16" or "fp32"."""
    if DOT == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x.to(tl.float32)


@triton.jit
def row_sums(x, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Cumulative sums [C, C] along rows, as products with a triangle of ones.

    Each term is rounded to an operand; none cancels another.
    """
    C: tl.constexpr = x.shape[0]
    rows = tl.arange(0, C)
    upto = tl.where(rows[:, None] <= rows[None, :], 1.0, 0.0)
    upto = operand(upto, DOT)
    return tl.dot(operand(x, DOT), upto, input_precision=PRECISION)
