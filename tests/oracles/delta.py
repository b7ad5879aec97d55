"""Oracles of the rules that erase before they write.

S' = exp(g) S,   S = S' + k (beta (v - S'ᵀ k))ᵀ,   o = scale Sᵀ q
"""

import numpy as np

from tests.oracles import recurrence
from tests.oracles import tape


def _per_state(gate):
    """A gate [B, H] or [B, H, K] as a factor on [B, H, K, V]."""
    return gate[(Ellipsis, *(None,) * (4 - len(gate.shape)))]


def _per_value(beta):
    """A strength [B, H] or [B, H, V] as a factor on [B, H, V]."""
    return beta[(Ellipsis, *(None,) * (3 - len(beta.shape)))]


def _read(S, key):
    return tape.einsum("bhkv,bhk->bhv", S, key)


def _write(S, key, value):
    return S + tape.einsum("bhk,bhv->bhkv", key, value)


def _run(inputs, state, segment_ids, scale, update):
    """`update(t, S, x)` writes token t, x the inputs with repeated heads."""
    heads = state[0].shape[1]
    x = {n: tape.repeat_heads(a, heads) for n, a in inputs.items()}
    scale = x["q"].shape[-1] ** -0.5 if scale is None else scale

    def step(t, state):
        S = update(t, state[0], x)
        return (S,), _read(S, x["q"][:, t]) * scale

    empty = (np.zeros(state[0].shape),)
    return recurrence.run(step, state, empty, segment_ids)


def delta_rule(inputs, state, segment_ids, scale=None):
    """beta [B, T, H] or [B, T, H, V]; log_decay [B, T, H(, K)] or absent."""

    def update(t, S, x):
        if "log_decay" in x:
            S = _per_state(tape.exp(x["log_decay"][:, t])) * S
        k, v = x["k"][:, t], x["v"][:, t]
        return _write(S, k, _per_value(x["beta"][:, t]) * (v - _read(S, k)))

    return _run(inputs, state, segment_ids, scale, update)


def gated_delta_product(
    inputs, state, segment_ids, num_householder, scale=None
):
    """Several delta steps a token, the decay before the first of them."""

    def update(t, S, x):
        if "log_decay" in x:
            S = _per_state(tape.exp(x["log_decay"][:, t])) * S
        for i in range(t * num_householder, (t + 1) * num_householder):
            k, v = x["k"][:, i], x["v"][:, i]
            write = _per_value(x["beta"][:, i]) * (v - _read(S, k))
            S = _write(S, k, write)
        return S

    return _run(inputs, state, segment_ids, scale, update)


def comba(inputs, state, segment_ids, scale=None):
    """S = exp(g) S + beta k (v - Sᵀ p)ᵀ: the read comes before the decay."""

    def update(t, S, x):
        read = _read(S, x["p"][:, t])
        S = _per_state(tape.exp(x["log_decay"][:, t])) * S
        write = _per_value(x["beta"][:, t]) * (x["v"][:, t] - read)
        return _write(S, x["k"][:, t], write)

    return _run(inputs, state, segment_ids, scale, update)


def dplr_delta_rule(inputs, state, segment_ids, scale=1.0):
    """S = (diag(exp g) + b aᵀ) S + k vᵀ."""

    def update(t, S, x):
        read = _read(S, x["a"][:, t])
        S = _per_state(tape.exp(x["log_decay"][:, t])) * S
        S = _write(S, x["b"][:, t], read)
        return _write(S, x["k"][:, t], x["v"][:, t])

    return _run(inputs, state, segment_ids, scale, update)


def gated_delta_rule_2(inputs, state, segment_ids, scale=None):
    """S' = exp(g) S; S = S' + k (w v - S'ᵀ (b k))ᵀ, b and w per channel."""

    def update(t, S, x):
        S = _per_state(tape.exp(x["log_decay"][:, t])) * S
        k = x["k"][:, t]
        target = x["w"][:, t] * x["v"][:, t]
        return _write(S, k, target - _read(S, x["b"][:, t] * k))

    return _run(inputs, state, segment_ids, scale, update)
