"""Oracles of gated slot attention and of LightNet's prefix softmax."""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def gated_slot_attention(inputs, state, segment_ids, scale=None):
    """K = K e^g + k sᵀ; a = softmax(scale Kᵀ q); V = e^g V + s vᵀ; o = Vᵀ a."""
    v, s = inputs["v"], inputs["s"]
    q = tape.repeat_heads(inputs["q"], v.shape[2])
    k = tape.repeat_heads(inputs["k"], v.shape[2])
    decay = tape.exp(inputs["log_decay"])
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        K, V = state
        K = K * decay[:, t, :, None, :]
        K = K + tape.einsum("bhk,bhm->bhkm", k[:, t], s[:, t])
        logits = tape.einsum("bhkm,bhk->bhm", K, q[:, t]) * scale
        a = tape.exp(logits - logits.value.max(-1, keepdims=True))
        a = a / tape.total(a, -1, keepdims=True)
        V = decay[:, t, :, :, None] * V
        V = V + tape.einsum("bhm,bhv->bhmv", s[:, t], v[:, t])
        return (K, V), tape.einsum("bhmv,bhm->bhv", V, a)

    empty = tuple(np.zeros(x.shape) for x in state)
    return recurrence.run(step, state, empty, segment_ids)


def lightnet_attention(inputs, state, segment_ids, scale=None):
    """S = e^(z' - z) S + e^(k - z) vᵀ with z = logaddexp(z', k)."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        S, old = state
        top = np.maximum(old.value, k.value[:, t])
        kept, new = tape.exp(old - top), tape.exp(k[:, t] - top)
        z = tape.log(kept + new) + top
        S = tape.expand(kept / (kept + new), -1) * S
        write = new / (kept + new)
        S = S + tape.einsum("bhk,bhv->bhkv", write, v[:, t])
        return (S, z), tape.einsum("bhkv,bhk->bhv", S, q[:, t]) * scale

    empty = (np.zeros(state[0].shape), np.full(state[1].shape, -np.inf))
    return recurrence.run(step, state, empty, segment_ids)
