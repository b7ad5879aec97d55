"""Decays inside a chunk, for kernels with one gate a key channel.

    D_ij = product of exp(g_m) over j < m <= i, for each channel

Tokens i > j of a chunk part at exactly one halving of it, into blocks of S
tokens, and with the border between these D_ij = enter_i leave_j: two
exponentials of sums of gates <= 0 inside one block.  Nothing overflows, no sum
is subtracted from another, and a start of a document or a gate of -inf may
stand in the sums as it is.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from seqjax_kernels.decay import gates


@triton.jit
def channel_gates(gate, starts, row, rows, kk, ok, H, K):
    """Gates [C, BK], -inf where a document starts, 0 outside.

    `row` counts tokens up to the chunk, `rows` are those of the chunk (or one
    later), `ok` says which there are; `gate` points to the head.
    """
    g = tl.load(
        gate + row * (H * K) + (rows[:, None] * (H * K) + kk[None, :]),
        mask=ok[:, None] & (kk[None, :] < K),
        other=0.0,
    )
    g = gates.vanishing(g.to(tl.float32))
    if starts is not None:
        cut = tl.load(starts + row + rows, mask=ok, other=0)
        g = tl.where((cut != 0)[:, None], float("-inf"), g)
    return g


@triton.jit
def enter_decays(g, S: tl.constexpr):
    """[C, BK]: from the border in front of a token's block of S through it."""
    C: tl.constexpr = g.shape[0]
    BK: tl.constexpr = g.shape[1]
    sums = tl.cumsum(tl.reshape(g, [C // S, S, BK]), 1)
    return tl.exp(tl.reshape(sums, [C, BK]))


@triton.jit
def leave_decays(later, S: tl.constexpr):
    """[C, BK]: from behind a token to the end of its block of S.

    `later` holds the gate of the next token in each row.
    """
    C: tl.constexpr = later.shape[0]
    BK: tl.constexpr = later.shape[1]
    last = (tl.arange(0, C) + 1) % S == 0
    g = tl.where(last[:, None], 0.0, later)
    sums = tl.cumsum(tl.reshape(g, [C // S, S, BK]), 1, reverse=True)
    return tl.exp(tl.reshape(sums, [C, BK]))


@triton.jit
def parted(C: tl.constexpr, S: tl.constexpr):
    """[C, C]: whether tokens i > j part at the halving into blocks of S."""
    block = tl.arange(0, C) // S
    return (block[:, None] % 2 == 1) & (block[:, None] == block[None, :] + 1)


@triton.jit
def sums_behind(x, S: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """[C, BK]: for token t the sum of x over i >= t in its block of S."""
    C: tl.constexpr = x.shape[0]
    rows = tl.arange(0, C)
    ones = (rows[:, None] // S == rows[None, :] // S) & (
        rows[:, None] <= rows[None, :]
    )
    ones = gates.operand(tl.where(ones, 1.0, 0.0), DOT)
    return tl.dot(ones, gates.operand(x, DOT), input_precision=PRECISION)


@triton.jit
def sums_before(x, S: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """[C, BK]: for token t the sum of x over j < t in its block of S."""
    C: tl.constexpr = x.shape[0]
    rows = tl.arange(0, C)
    ones = (rows[:, None] // S == rows[None, :] // S) & (
        rows[:, None] > rows[None, :]
    )
    ones = gates.operand(tl.where(ones, 1.0, 0.0), DOT)
    return tl.dot(ones, gates.operand(x, DOT), input_precision=PRECISION)
