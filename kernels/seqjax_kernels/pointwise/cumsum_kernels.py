"""Kernel of the cumulative sum inside chunks."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def _add(high, low, other_high, other_low):
    """The sum of two numbers of two floats each."""
    total = high + other_high
    part = total - high
    error = (high - (total - part)) + (other_high - part)
    return total, low + other_low + error


@triton.jit
def chunk_cumsum_kernel(
    x,
    high,
    low,
    T: tl.constexpr,
    F: tl.constexpr,
    C: tl.constexpr,
    REVERSE: tl.constexpr,
    BC: tl.constexpr,
    BF: tl.constexpr,
):
    """high and low [B,T,F], the sum of both from the chunk's end to t."""
    CHUNKS: tl.constexpr = (T + C - 1) // C
    pid = tl.program_id(0)
    b = (pid // CHUNKS).to(tl.int64)
    row = tl.arange(0, BC)
    t = pid % CHUNKS * C + row
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    mask = ((row < C) & (t < T))[:, None] & (f < F)[None, :]
    cells = (b * T + t)[:, None] * F + f[None, :]
    value = tl.load(x + cells, mask=mask, other=0.0).to(tl.float32)
    zero = tl.zeros([BC, BF], tl.float32)
    total, error = tl.associative_scan((value, zero), 0, _add, reverse=REVERSE)
    # One float is the nearest to the sum, the other what is left.
    whole = total + error
    tl.store(high + cells, whole, mask=mask)
    tl.store(low + cells, error - (whole - total), mask=mask)
