"""Oracle of softmax attention: one dense table of logits, nothing clever.

State leaves in the order of the operator's cache: k, v, segment, position,
length and, with a forget gate, the sum of log gates behind each cached token
and its rounding error.  The cached tokens stand before the new ones.
"""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


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
        y [B, T, H, V] and (k, v) of the last `capacity` real tokens, oldest
        first, zeros behind them; with a forget gate also the decays behind
        each, 1 for documents that have ended.
    """
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    capacity = (window - 1 if window else T) if capacity is None else capacity
    document, valid = _documents(np.asarray(segment_ids))
    rows, past = np.arange(B)[:, None], 0
    if state:
        capacity = past = state[0].shape[1]
        order, ids, there = _sorted_cache(state[2].value, state[3].value)
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
    kept = [k, v]
    if "log_decay" in inputs:
        behind = np.zeros((B, past, H))
        if state:
            behind = (state[5] + state[6])[rows, order]
        decays, last = _decays(inputs["log_decay"], behind, valid[:, past:])
        logits = logits + decays
        final = np.where(valid, document, -1).max(1, keepdims=True)
        alive = (valid & (document == final))[:, :, None]
        kept.append(tape.exp(tape.where(alive, last, np.zeros(last.shape))))
    y = _softmax(logits, seen, inputs.get("sink"), tape.repeat_heads(v, H))
    real = np.asarray(segment_ids)[:, :, None, None] >= 0
    y = tape.where(real, y, np.zeros(y.shape))
    return y, _last(kept, valid, capacity)


def _documents(segment_ids):
    """Documents numbered from 0 in each row, and which tokens are real."""
    real, start = recurrence.real_and_start(segment_ids)
    return np.cumsum(start, 1), real


def _sorted_cache(segment, position):
    """Slots oldest first, document 0 for the last one, and which are filled."""
    filled = segment >= 0
    order = np.argsort(np.where(filled, position, -1), 1, kind="stable")
    ids = np.take_along_axis(segment, order, 1)
    return order, np.where(ids == ids[:, -1:], 0, -1), ids >= 0


def _decays(log_decay, behind, real):
    """The sum of log_decay over l with j < l <= i, [B, H, i, j]; its last row.

    `behind` [B, S, H] is that sum over cached l, for cached j.
    """
    (B, T, H), past = log_decay.shape, behind.shape[1]
    g = tape.where(real[:, :, None], log_decay, np.zeros((B, T, H)))
    row = tape.concatenate([behind, np.zeros((B, T, H))], 1)
    rows = []
    for i in range(T):
        before = (np.arange(past + T) < past + i)[None, :, None]
        row = tape.where(before, row + g[:, i : i + 1], row)
        rows.append(row)
    return _transpose(tape.stack(rows, 1), (0, 3, 1, 2)), row


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


def _last(kept, valid, capacity):
    """The last `capacity` valid tokens of each row, oldest first."""
    B = valid.shape[0]
    index = np.zeros((B, capacity), np.int64)
    there = np.zeros((B, capacity), bool)
    for row in range(B):
        tokens = np.flatnonzero(valid[row])
        tokens = tokens[max(len(tokens) - capacity, 0) :]
        index[row, : len(tokens)] = tokens
        there[row, : len(tokens)] = True

    def take(x):
        mask = there.reshape(there.shape + (1,) * (len(x.shape) - 2))
        taken = x[np.arange(B)[:, None], index]
        return tape.where(mask, taken, np.zeros(taken.shape))

    return tuple(take(x) for x in kept)
