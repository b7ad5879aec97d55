"""Oracle of the mLSTM, stabilised as published."""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def mlstm(inputs, state, segment_ids, scale=None):
    """m = max(log σ(f) + m, i); the cell is C exp(m), its normaliser n exp(m).

    The read is h = C q / (max(|n q|, exp(-m)) + 1e-6), above and below times
    exp(min(m, 0)) so that nothing overflows.
    """
    heads = inputs["v"].shape[2]
    q = tape.repeat_heads(inputs["q"], heads)
    k = tape.repeat_heads(inputs["k"], heads)
    v, i = inputs["v"], inputs["input_gate"]
    log_forget = tape.log_sigmoid(inputs["forget_gate"])
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        C, n, m = state
        kept = log_forget[:, t] + m
        m = tape.maximum(kept, i[:, t])
        keep = tape.expand(tape.exp(kept - m), -1)
        written = k[:, t] * tape.expand(tape.exp(i[:, t] - m), -1)
        n = keep * n + written
        C = tape.expand(keep, -1) * C
        C = C + tape.einsum("bhk,bhv->bhkv", written, v[:, t])
        above = tape.einsum("bhkv,bhk->bhv", C, q[:, t]) * scale
        below = tape.einsum("bhk,bhk->bh", n, q[:, t]) * scale
        small = tape.exp(-tape.maximum(-m, 0.0))
        floor = tape.exp(-tape.maximum(m, 0.0))
        below = tape.maximum(tape.absolute(below) * small, floor)
        below = below + small * 1e-6
        return (C, n, m), above * tape.expand(small / below, -1)

    empty = (
        np.zeros(state[0].shape),
        np.zeros(state[1].shape),
        np.full(state[2].shape, -np.inf),
    )
    return recurrence.run(step, state, empty, segment_ids)
