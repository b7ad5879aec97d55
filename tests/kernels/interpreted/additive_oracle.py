"""The additive rule token by token in float64, and its derivative."""

import numpy as np


def forward(q, k, v, log_decay, starts, initial, scale):
    """Outputs, and the states in front of every token and behind the last.

    `log_decay` is [B, T, H], [B, T, H, K], [H], or None.
    """
    repeat = v.shape[2] // q.shape[2]
    q, k = (np.repeat(x, repeat, axis=2) for x in (q, k))
    decay = decays(log_decay, starts, (*v.shape[:3], q.shape[3]))
    states, outputs = [initial], []
    for t in range(q.shape[1]):
        write = k[:, t, :, :, None] * v[:, t, :, None]
        states.append(decay[:, t, :, :, None] * states[-1] + write)
        read = np.einsum("bhk,bhkv->bhv", q[:, t], states[-1])
        outputs.append(scale * read)
    return np.stack(outputs, axis=1), states


def decays(log_decay, starts, shape):
    """Decays [B, T, H, K]."""
    decay = np.ones(shape)
    if log_decay is not None:
        if log_decay.ndim == 1:
            log_decay = log_decay[None, None]
        if log_decay.ndim == 3:
            log_decay = log_decay[..., None]
        decay = decay * np.exp(log_decay)
    if starts is not None:
        decay = np.where(starts[:, :, None, None], 0, decay)
    return decay


def backward(q, k, v, log_decay, starts, initial, scale, y_bar, state_bar):
    """Cotangents of q, k, v, log_decay [B, T, H, K], initial."""
    groups = q.shape[2]
    repeat = v.shape[2] // groups
    _, states = forward(q, k, v, log_decay, starts, initial, scale)
    q, k = (np.repeat(x, repeat, axis=2) for x in (q, k))
    decay = decays(log_decay, starts, q.shape)
    bars = []
    for t in reversed(range(q.shape[1])):
        out = scale * y_bar[:, t]
        q_bar = np.einsum("bhkv,bhv->bhk", states[t + 1], out)
        state_bar = state_bar + q[:, t, :, :, None] * out[:, :, None]
        k_bar = np.einsum("bhkv,bhv->bhk", state_bar, v[:, t])
        v_bar = np.einsum("bhkv,bhk->bhv", state_bar, k[:, t])
        log_bar = decay[:, t] * np.sum(states[t] * state_bar, axis=-1)
        state_bar = decay[:, t, :, :, None] * state_bar
        bars.append((q_bar, k_bar, v_bar, log_bar))
    q_bar, k_bar, v_bar, log_bar = (
        np.stack(x[::-1], axis=1) for x in zip(*bars, strict=True)
    )
    batch, length, _, key = q.shape
    q_bar, k_bar = (
        x.reshape(batch, length, groups, repeat, key).sum(axis=3)
        for x in (q_bar, k_bar)
    )
    return q_bar, k_bar, v_bar, log_bar, state_bar
