"""Oracles of the elementwise recurrences: one number an element of state."""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def linear_recurrence(inputs, state, segment_ids):
    """h = exp(log_decay) h + x."""
    x, decay = inputs["x"], tape.exp(inputs["log_decay"])

    def step(t, state):
        (h,) = state
        h = decay[:, t] * h + x[:, t]
        return (h,), h

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)


def selective_scan(inputs, state, segment_ids):
    """Mamba-1: h = exp(dt A) h + dt x B; y = C h + D x, state [B, D, N]."""
    x, dt, A = inputs["x"], inputs["dt"], inputs["A"]
    B = tape.repeat_heads(inputs["B"], x.shape[2])
    C = tape.repeat_heads(inputs["C"], x.shape[2])
    skip = inputs["D"] if "D" in inputs else 0.0

    def step(t, state):
        (h,) = state
        step = dt[:, t, :, None]
        h = tape.exp(step * A) * h + step * x[:, t, :, None] * B[:, t]
        y = tape.total(h * C[:, t], -1)
        return (h,), y + x[:, t] * skip

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)


def rwkv4(inputs, state, segment_ids):
    """A weighted average; its sums are num exp(m) and den exp(m)."""
    k, v = inputs["k"], inputs["v"]
    log_decay, bonus = inputs["log_decay"], inputs["bonus"]

    def step(t, state):
        num, den, m = state
        here = k[:, t] + bonus
        top = tape.maximum(m, here)
        past, here = tape.exp(m - top), tape.exp(here - top)
        o = (past * num + here * v[:, t]) / (past * den + here)
        decayed = m + log_decay
        m = tape.maximum(decayed, k[:, t])
        keep, write = tape.exp(decayed - m), tape.exp(k[:, t] - m)
        return (keep * num + write * v[:, t], keep * den + write, m), o

    zeros = np.zeros(state[0].shape)
    empty = (zeros, zeros, np.full(zeros.shape, -np.inf))
    return recurrence.run(step, state, empty, segment_ids)
