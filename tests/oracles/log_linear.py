"""Oracle of log-linear attention: a Fenwick tree, one token at a time."""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def log_linear_attention(inputs, state, segment_ids, scale=1.0):
    """At position p, levels up to p's lowest set bit merge into the next."""
    v, scales = inputs["v"], inputs["level_scales"]
    q = tape.repeat_heads(inputs["q"], v.shape[2])
    k = tape.repeat_heads(inputs["k"], v.shape[2])
    decay = tape.exp(inputs["log_decay"])
    levels = scales.shape[-1]
    if not state:  # golden files have none
        B, _, H, V = v.shape
        sizes = (B, H, levels, q.shape[-1], V)
        state = (tape.constant(np.zeros(sizes)), tape.constant(np.zeros(B)))

    def moved(position):
        """0/1 matrix [L, L] from old to new levels."""
        move = np.eye(levels)
        if position > 0:
            lowest = int(position) & -int(position)
            into = min(lowest.bit_length(), levels - 1)
            move[: into + 1] = 0
            move[: into + 1, into] = 1
        return move

    def step(t, state):
        S, count = state
        move = np.stack([moved(n) for n in count.value])
        S = tape.einsum("bhlkv,blm->bhmkv", S, move)
        S = S * decay[:, t, :, None, None, None]
        new = tape.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        own = np.zeros((1, 1, levels, 1, 1))
        own[0, 0, 0] = 1
        S = S + tape.expand(new, 2) * own
        weighed = tape.einsum("bhl,bhk->bhlk", scales[:, t], q[:, t])
        y = tape.einsum("bhlkv,bhlk->bhv", S, weighed) * scale
        return (S, count + 1.0), y

    empty = tuple(np.zeros(x.shape) for x in state)
    y, final = recurrence.run(step, state, empty, segment_ids)
    return y, final[:1]
