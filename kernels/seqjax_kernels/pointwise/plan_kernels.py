"""Kernels that find where the taps of packed documents look.

First each row's real tokens are moved together, which gives their order; then
tap j of a token is the j-th entry in front of it, if of the same document.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

_PADDING = tl.constexpr(-1)
_INITIAL = tl.constexpr(-2)


@triton.jit
def order_kernel(ids, order, ranks, counts, T: tl.constexpr, BT: tl.constexpr):
    """order [B,T], real tokens first; ranks [B,T] in it; counts [B] of real.

    Every program counts the tokens of the whole row, which are few bytes.
    """
    TILES: tl.constexpr = (T + BT - 1) // BT
    pid = tl.program_id(0)
    b = (pid // TILES).to(tl.int64)
    tile = pid % TILES
    rows = tl.arange(0, BT)
    before = tl.zeros([BT], tl.int32)
    count = tl.zeros([BT], tl.int32)
    for start in range(0, T, BT):
        t = start + rows
        real = tl.load(ids + b * T + t, mask=t < T, other=_PADDING) != _PADDING
        count += real.to(tl.int32)
        before += (real & (t < tile * BT)).to(tl.int32)
    total = tl.sum(count, 0)
    t = tile * BT + rows
    inside = t < T
    real = tl.load(ids + b * T + t, mask=inside, other=_PADDING) != _PADDING
    earlier = tl.sum(before, 0) + tl.cumsum(real.to(tl.int32), 0)
    rank = tl.where(real, earlier - 1, total + t - earlier)
    tl.store(ranks + b * T + t, rank, mask=inside)
    tl.store(order + b * T + rank, t, mask=inside)
    if tile == 0:
        tl.store(counts + b, total)


@triton.jit
def _entry(
    ids,
    initial_ids,
    order,
    b,
    first,
    count,
    p,
    T: tl.constexpr,
    N: tl.constexpr,
):
    """(places, ids) of entries p of the initial state and the real tokens.

    What is no entry has the id of padding; N = W-1 entries stand in front.
    """
    token = (p >= N) & (p < N + count)
    place = tl.load(order + b * T + (p - N), mask=token, other=0)
    found = tl.load(ids + b * T + place, mask=token, other=_PADDING)
    front = (p >= 0) & (p < N)
    place = tl.where(front, p - N, place)
    if initial_ids is None:
        own = first
    else:
        own = tl.load(initial_ids + b * N + p, mask=front, other=_PADDING)
        own = tl.where(own == _INITIAL, first, own)
    return place, tl.where(front, own, found)


@triton.jit
def plan_kernel(
    ids,
    initial_ids,
    order,
    ranks,
    counts,
    sources,
    targets,
    last,
    T: tl.constexpr,
    W: tl.constexpr,
    BT: tl.constexpr,
    BW: tl.constexpr,
):
    """sources [B,T,W], targets [B,W-1+T,W+1], last [B,W]; see `Plan`.

    The last of `last` is of no use.
    """
    N: tl.constexpr = W - 1
    TILES: tl.constexpr = (T + N + BT - 1) // BT
    pid = tl.program_id(0)
    b = (pid // TILES).to(tl.int64)
    w = tl.arange(0, BW)
    s = pid % TILES * BT + tl.arange(0, BT) - N
    inside = s < T
    count = tl.load(counts + b)
    # Of the first real token, or of padding where there is none.
    first = tl.load(ids + b * T + tl.load(order + b * T))
    _, final = _entry(
        ids, initial_ids, order, b, first, count, count + (N - 1) + 0 * w, T, N
    )
    token = inside & (s >= 0)
    rank = tl.load(ranks + b * T + s, mask=token, other=0)
    own = tl.where(s < 0, s + N, N + rank)
    _, own_id = _entry(ids, initial_ids, order, b, first, count, own, T, N)
    # A token of padding stands behind all entries.
    real = token & (rank < count)
    held = (real | (s < 0))[:, None]

    behind = own[:, None] - w[None, :]
    place, found = _entry(
        ids, initial_ids, order, b, first, count, behind, T, N
    )
    same = real[:, None] & (found == own_id[:, None])
    cells = (b * T + s)[:, None] * W + w[None, :]
    mask = token[:, None] & (w < W)[None, :]
    tl.store(sources + cells, tl.where(same, place, -W), mask=mask)

    ahead = own[:, None] + w[None, :]
    place, found = _entry(ids, initial_ids, order, b, first, count, ahead, T, N)
    # An entry that is absent has the id of padding, and meets nobody.
    same = held & (found == own_id[:, None]) & (found != _PADDING)
    slot = tl.where(
        held & (own_id[:, None] == final[None, :]), (own - count)[:, None], -1
    )
    target = tl.where((w < W)[None, :], tl.where(same, place, -1), slot)
    cells = (b * (T + N) + s + N)[:, None] * (W + 1) + w[None, :]
    mask = inside[:, None] & (w <= W)[None, :]
    tl.store(targets + cells, target, mask=mask)

    if pid % TILES == 0:
        end, end_id = _entry(
            ids, initial_ids, order, b, first, count, count + w, T, N
        )
        end = tl.where(end_id == final, end, -W)
        tl.store(last + b * W + w, end, mask=w < W)
