"""Oracles of the additive families: linear attention to state spaces.

Everything is one line, S = exp(g) S + k vᵀ and o = Sᵀ q, with the gate g
absent, one per head, per token and head, or per key channel.
"""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def _decayed(inputs, state, segment_ids, scale, gate):
    """The shared loop; `gate(t)` is the factor on S, [B or 1, H, K or 1, 1]."""
    heads = inputs["v"].shape[2]
    q = tape.repeat_heads(inputs["q"], heads)
    k = tape.repeat_heads(inputs["k"], heads)
    v = inputs["v"]
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        (S,) = state
        S = gate(t) * S + tape.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        return (S,), tape.einsum("bhkv,bhk->bhv", S, q[:, t]) * scale

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)


def linear_attention(inputs, state, segment_ids, scale=None):
    """S += k vᵀ; o = scale Sᵀ q."""
    return _decayed(inputs, state, segment_ids, scale, lambda t: 1.0)


def normalised_linear_attention(inputs, state, segment_ids, scale=None):
    """The same, divided by scale q·z + 1e-10 with z the sum of the keys."""
    heads = inputs["v"].shape[2]
    q = tape.repeat_heads(inputs["q"], heads)
    k = tape.repeat_heads(inputs["k"], heads)
    v = inputs["v"]
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        S, z = state
        S = S + tape.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        z = z + k[:, t]
        above = tape.einsum("bhkv,bhk->bhv", S, q[:, t]) * scale
        below = tape.einsum("bhk,bhk->bh", z, q[:, t]) * scale + 1e-10
        return (S, z), above / tape.expand(below, -1)

    empty = tuple(np.zeros(x.shape) for x in state)
    return recurrence.run(step, state, empty, segment_ids)


def constant_decay(inputs, state, segment_ids, scale=None):
    """Retention and lightning attention: log_decay [H], the same always."""
    decay = tape.exp(inputs["log_decay"])[None, :, None, None]
    return _decayed(inputs, state, segment_ids, scale, lambda t: decay)


def gated_linear_attention(inputs, state, segment_ids, scale=None):
    """log_decay [B, T, H] or [B, T, H, K]."""
    decay = tape.exp(inputs["log_decay"])
    channels = (None,) * (5 - len(decay.shape))

    def gate(t):
        return decay[(slice(None), t, Ellipsis, *channels)]

    return _decayed(inputs, state, segment_ids, scale, gate)


def ssd(inputs, state, segment_ids):
    """Mamba-2: h = exp(dt A) h + dt x Bᵀ; y = h C + D x, state [B, H, P, N]."""
    x, dt = inputs["x"], inputs["dt"]
    B = tape.repeat_heads(inputs["B"], x.shape[2])
    C = tape.repeat_heads(inputs["C"], x.shape[2])
    decay = tape.exp(dt * inputs["A"])
    skip = inputs["D"][:, None] if "D" in inputs else 0.0

    def step(t, state):
        (h,) = state
        written = x[:, t] * dt[:, t, :, None]
        h = decay[:, t, :, None, None] * h
        h = h + tape.einsum("bhp,bhn->bhpn", written, B[:, t])
        y = tape.einsum("bhpn,bhn->bhp", h, C[:, t])
        return (h,), y + x[:, t] * skip

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)


def rwkv6(inputs, state, segment_ids, scale=None):
    """o = scale (S + u k vᵀ)ᵀ r, read before S = exp(w) S + k vᵀ."""
    v, bonus = inputs["v"], inputs["bonus"]
    r = tape.repeat_heads(inputs["r"], v.shape[2])
    k = tape.repeat_heads(inputs["k"], v.shape[2])
    decay = tape.exp(inputs["log_decay"])
    scale = r.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        (S,) = state
        own = tape.einsum("bhk,bhv->bhkv", k[:, t] * bonus, v[:, t])
        y = tape.einsum("bhkv,bhk->bhv", S + own, r[:, t]) * scale
        S = decay[:, t, :, :, None] * S
        return (S + tape.einsum("bhk,bhv->bhkv", k[:, t], v[:, t]),), y

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)
