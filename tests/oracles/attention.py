"""Oracle of softmax attention: one dense table of logits, nothing clever.

State leaves in the order of the operator's cache: k, v, segment, position,
length.  The cached tokens stand before the new ones, sorted by position.
"""

import numpy as np

from tests.oracles import recurrence, tape


def softmax_attention(
    inputs, state, segment_ids, *, window=None, scale=None, capacity=None
):
    """Causal attention inside a segment; a window counts the token itself.

    Args:
        inputs: q [B, T, H, K], k, v with H or fewer heads, and optionally
            sink [H] and log_decay [B, T, H].
        state: () or the cache's leaves; its tokens belong to the segment that
            they name, the last of them to the first segment of this call.
        segment_ids: int [B, T].
        window: tokens seen, itself included; None for all.
        scale: default K**-0.5.
        capacity: slots of the returned cache; default T, or window - 1.

    Returns:
        y [B, T, H, V] and (k, v): the last `capacity` real tokens, oldest
        first, zeros behind them.
    """
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    capacity = (window - 1 if window else T) if capacity is None else capacity
    document, valid = _documents(np.asarray(segment_ids))
    past = 0
    if state:
        capacity = past = state[0].shape[1]
        order, ids, there = _sorted_cache(*(x.value for x in state[2:]))
        rows = np.arange(B)[:, None]
        k = tape.concatenate([state[0][rows, order], k], 1)
        v = tape.concatenate([state[1][rows, order], v], 1)
        document = np.concatenate([ids, document], 1)
        valid = np.concatenate([there, valid], 1)

    # index of each real token among its row's real tokens
    index = np.cumsum(valid, 1) - 1
    seen = valid[:, past:, None] & valid[:, None, :]
    seen &= document[:, past:, None] == document[:, None, :]
    distance = index[:, past:, None] - index[:, None, :]
    seen &= (distance >= 0) & (distance < (window or np.inf))
    seen = seen[:, None]  # [B, 1, T, S + T]

    logits = tape.einsum("bihk,bjhk->bhij", q * scale, tape.repeat_heads(k, H))
    if "log_decay" in inputs:
        logits = logits + _decays(inputs["log_decay"], valid[:, past:])
    y = _softmax(logits, seen, inputs.get("sink"), tape.repeat_heads(v, H))
    real = np.asarray(segment_ids)[:, :, None, None] >= 0
    y = tape.where(real, y, np.zeros(y.shape))
    return y, _last(k, v, valid, capacity)


def _documents(segment_ids):
    """Documents numbered from 0 in each row, and which tokens are real."""
    real, start = recurrence.real_and_start(segment_ids)
    return np.cumsum(start, 1), real


def _sorted_cache(segment, position, length):
    """Slots oldest first, document numbers up to 0, and which are filled."""
    filled = segment >= 0
    # position restarts in each document, so the segment is the major key
    key = np.where(filled, segment * 1e6 + position, -1.0)
    order = np.argsort(key, 1, kind="stable")
    ids = np.take_along_axis(segment, order, 1)
    last = ids[:, -1:]
    return order, np.where(ids == last, 0, -1), ids >= 0


def _decays(log_decay, real):
    """The sum of log_decay over l with j < l <= i, [B, H, i, j]."""
    B, T, H = log_decay.shape
    g = tape.where(real[:, :, None], log_decay, np.zeros((B, T, H)))
    row = tape.constant(np.zeros((B, T, H)))
    rows = []
    for i in range(T):
        before = (np.arange(T) < i)[None, :, None]
        row = tape.where(before, row + g[:, i : i + 1], np.zeros((B, T, H)))
        rows.append(row)
    return _transpose(tape.stack(rows, 1), (0, 3, 1, 2))


def _transpose(a, axes):
    back = np.argsort(axes)
    value = np.transpose(a.value, axes)
    return tape.Variable(value, [(a, lambda g: np.transpose(g, back))])


def _softmax(logits, seen, sink, v):
    """Softmax over what is seen; rows that see nothing give zero."""
    hidden = np.full(logits.shape, -np.inf)
    top = np.where(seen, logits.value, hidden).max(-1, keepdims=True)
    if sink is not None:
        sink = sink[None, :, None, None]
        top = np.maximum(top, sink.value)
    top = np.where(np.isfinite(top), top, 0.0)  # a constant: it cancels
    weight = tape.exp(tape.where(seen, logits - top, hidden))
    below = tape.total(weight, -1)
    if sink is not None:
        below = below + tape.exp(sink - top)[..., 0]
    below = tape.where(below.value > 0, below, np.ones(below.shape))
    above = tape.einsum("bhij,bjhv->bhiv", weight, v)
    return _transpose(above / tape.expand(below, -1), (0, 2, 1, 3))


def _last(k, v, valid, capacity):
    """The last `capacity` valid tokens of each row, oldest first."""
    B = valid.shape[0]
    index = np.zeros((B, capacity), np.int64)
    there = np.zeros((B, capacity), bool)
    for row in range(B):
        kept = np.flatnonzero(valid[row])
        kept = kept[max(len(kept) - capacity, 0) :]
        index[row, : len(kept)] = kept
        there[row, : len(kept)] = True
    rows = np.arange(B)[:, None]
    there = there[:, :, None, None]
    return tuple(
        tape.where(there, x[rows, index], np.zeros((1, 1, 1, 1)))
        for x in (k, v)
    )
