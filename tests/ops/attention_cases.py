"""Inputs, oracle and shared calls of the tests of softmax attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops

attend = ops.softmax_attention

B, T, H, HK, K, V = 3, 70, 4, 2, 6, 5


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-6 * b.size**0.5)


def make(dtype=np.float64, *, gate=True, seed=0):
    """Inputs with hard gates, and packed ids with padding in many places."""
    rng = np.random.default_rng(seed)
    x = {
        "q": rng.normal(size=(B, T, H, K)),
        "k": rng.normal(size=(B, T, HK, K)),
        "v": rng.normal(size=(B, T, HK, V)),
        "sink": rng.normal(size=H),
    }
    if gate:
        g = -np.exp(rng.normal(size=(B, T, H)) - 2)
        g[rng.random(g.shape) < 0.1] = -1e4
        g[rng.random(g.shape) < 0.05] = -np.inf
        x["log_decay"] = g
    segment_ids = np.sort(rng.integers(0, 4, (B, T)), axis=1).astype(np.int32)
    segment_ids[rng.random((B, T)) < 0.2] = -1
    segment_ids[0, :5] = -1
    segment_ids[1, 40:] = -1
    cotangent = rng.normal(size=(B, T, H, V))
    x = {name: jnp.asarray(a, dtype) for name, a in x.items()}
    return x, jnp.asarray(segment_ids), jnp.asarray(cotangent, dtype)


def oracle(x, segment_ids, *, window=None, causal=True):
    """One query at a time, in float64."""
    x = {name: np.asarray(a, np.float64) for name, a in x.items()}
    y = np.zeros((*x["q"].shape[:3], x["v"].shape[-1]))
    batch, length, heads, width = x["q"].shape
    share = heads // x["k"].shape[2]
    for b, i, h in np.ndindex(batch, length, heads):
        ids = segment_ids[b]
        if ids[i] < 0:
            continue
        seen = [
            j for j in range(i + 1 if causal else length) if ids[j] == ids[i]
        ]
        seen = seen[-window:] if window else seen
        logits = x["k"][b, seen, h // share] @ x["q"][b, i, h] * width**-0.5
        if "log_decay" in x:
            real = np.where(ids >= 0, x["log_decay"][b, :, h], 0)
            logits += [np.sum(real[j + 1 : i + 1]) for j in seen]
        sink = [x["sink"][h]] if "sink" in x else []
        top = max([*logits, *sink])
        p = np.exp(logits - top)
        below = p.sum() + np.exp(np.array(sink) - top).sum()
        y[b, i, h] = p @ x["v"][b, seen, h // share] / below
    return y


def call(x, start, stop, segment_ids, **options):
    """Attention of tokens start .. stop."""
    part = {
        name: a if name == "sink" else a[:, start:stop] for name, a in x.items()
    }
    q, k, v = (part.pop(name) for name in ("q", "k", "v"))
    ids = None if segment_ids is None else segment_ids[:, start:stop]
    return attend(q, k, v, segment_ids=ids, **part, **options)


def state_loss(state):
    """Some of everything a final state holds."""
    loss = jnp.sum(jnp.sin(state.k)) + jnp.sum(jnp.cos(state.v))
    if state.log_decay is not None:
        decay = jnp.maximum(state.log_decay, -5)
        loss += jnp.sum(
            decay * jnp.cos(jnp.arange(decay.size)).reshape(decay.shape)
        )
    return loss


@functools.partial(jax.jit, static_argnames=("window", "form", "cuts"))
def value_and_grads(
    x, segment_ids, cotangent, weight=1.0, *, window, form, cuts=()
):
    """Output, final state and gradients, computed in one call or several."""

    def loss(x):
        options = {"window": window, "form": form}
        if form == "chunk":
            options["chunk_size"] = 16
        state, ys = None, []
        if cuts:
            gate = "log_decay" in x
            state = ops.attention_cache(
                B,
                T,
                HK,
                K,
                V,
                window=window,
                dtype=x["v"].dtype,
                gate_heads=H if gate else None,
            )
        edges = (0, *cuts, T)
        for start, stop in zip(edges, edges[1:], strict=False):
            y, state = call(
                x, start, stop, segment_ids, initial_state=state, **options
            )
            ys.append(y)
        y = jnp.concatenate(ys, axis=1)
        loss = jnp.sum(y * cotangent) + weight * state_loss(state)
        return loss, (y, state)

    grads, (y, state) = jax.grad(loss, has_aux=True)(x)
    return y, state, grads


@functools.cache
def reference(window, weight=1.0):
    """The parallel form in float64, whole."""
    with jax.enable_x64(True):
        result = value_and_grads(
            *make(), weight, window=window, form="parallel"
        )
    return jax.tree.map(np.asarray, result)
