"""Oracle of the causal depthwise convolution with a state."""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def short_convolution(inputs, state, segment_ids, activation=None):
    """y = act(Σ_w weight[w] x[t-W+1+w] + bias); the state is the last W-1."""
    x, weight = inputs["x"], inputs["weight"]

    def step(t, state):
        (past,) = state
        window = tape.concatenate([past, x[:, t : t + 1]], 1)
        y = tape.einsum("bwd,wd->bd", window, weight)
        y = y + inputs["bias"] if "bias" in inputs else y
        y = tape.silu(y) if activation == "silu" else y
        return (window[:, 1:],), y

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)
