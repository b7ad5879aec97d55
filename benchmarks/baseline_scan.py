"""The recurrences as one would first write them: `lax.scan` over the tokens.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = scale q_t S_t

One step a token, differentiated by JAX, nothing checkpointed. Time: T
dependent steps, each on the whole state [B, H, K, V] and none of them a matrix
product worth the name. Memory: the backward pass keeps the state of every
token, T K V numbers a head. This is what the operators are measured against
and, being obvious, what their benchmark inputs are checked with.

B batch, T time, H heads, K key, V value, N state, G groups.
"""

import jax
import jax.numpy as jnp


def _scan(q, k, v, log_decay):
    """Reads q [B,T,H,K] from the state fed with k [B,T,H,K] and v [B,T,H,V].

    log_decay is [B,T,H] or [B,T,H,K], or None for a state that never forgets;
    returns [B,T,H,V] in float32.
    """

    def step(state, token):
        if log_decay is None:
            q, k, v = token
        else:
            q, k, v, g = token
            channels = (None,) * (state.ndim - g.ndim)
            state = jnp.exp(g)[..., *channels] * state
        state = state + k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    inputs = (q, k, v) if log_decay is None else (q, k, v, log_decay)
    time_first = [jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in inputs]
    batch, _, heads, key_dim = k.shape
    start = jnp.zeros((batch, heads, key_dim, v.shape[-1]), jnp.float32)
    _, outputs = jax.lax.scan(step, start, tuple(time_first))
    return jnp.moveaxis(outputs, 0, 1)


def linear_attention(q, k, v):
    """Ungated attention: q, k [B,T,H,K], v [B,T,H,V] to [B,T,H,V]."""
    scale = q.shape[-1] ** -0.5
    return (scale * _scan(q, k, v, None)).astype(v.dtype)


def normalized_linear_attention(q, k, v):
    """Ungated attention over its weights' sum; q, k [B,T,H,K] positive."""
    scale = q.shape[-1] ** -0.5
    # A column of ones in v carries the running sum of the keys.
    ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
    summed = scale * _scan(q, k, jnp.concatenate([v, ones], axis=-1), None)
    return (summed[..., :-1] / (summed[..., -1:] + 1e-10)).astype(v.dtype)


def gated_linear_attention(q, k, v, log_decay):
    """A decay a token and head, [B,T,H], or a key channel too, [B,T,H,K]."""
    scale = q.shape[-1] ** -0.5
    return (scale * _scan(q, k, v, log_decay)).astype(v.dtype)


def retention(q, k, v):
    """One decay a head, 1 - 2^(-5-h); q, k [B,T,H,K], v [B,T,H,V]."""
    heads = jnp.arange(v.shape[2], dtype=jnp.float32)
    log_decay = jnp.log1p(-jnp.exp2(-5.0 - heads))
    log_decay = jnp.broadcast_to(log_decay, v.shape[:3])
    return gated_linear_attention(q, k, v, log_decay)


def lightning_attention(q, k, v):
    """One decay a head, exp(-2^(-8(h+1)/H)), unscaled; H a power of two."""
    heads = jnp.arange(1, v.shape[2] + 1, dtype=jnp.float32)
    log_decay = -jnp.exp2(-8.0 * heads / v.shape[2])
    log_decay = jnp.broadcast_to(log_decay, v.shape[:3])
    return _scan(q, k, v, log_decay).astype(v.dtype)


def ssd(x, dt, A, B, C):
    """Mamba-2: x [B,T,H,P], dt [B,T,H], A [H], B and C [B,T,G,N]."""
    per_group = x.shape[2] // B.shape[2]
    keys = jnp.repeat(B, per_group, axis=2)
    queries = jnp.repeat(C, per_group, axis=2)
    y = _scan(queries, keys, dt[..., None] * x, dt * A[None, None, :])
    return y.astype(x.dtype)


def linear_recurrence(x, log_decay):
    """One number an element: h = exp(log_decay) h + x, both [B,T,D]."""

    def step(state, token):
        x, g = token
        state = jnp.exp(g) * state + x
        return state, state

    inputs = (x.astype(jnp.float32), log_decay.astype(jnp.float32))
    time_first = tuple(jnp.moveaxis(x, 1, 0) for x in inputs)
    start = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    _, h = jax.lax.scan(step, start, time_first)
    return jnp.moveaxis(h, 0, 1).astype(x.dtype)


def selective_scan(x, dt, A, B, C):
    """Mamba-1: x, dt [B,T,D], A [D,N], B and C [B,T,G,N]."""
    grouped = (*x.shape[:2], B.shape[2], -1)
    A = A.reshape(B.shape[2], -1, A.shape[1])

    def step(state, token):
        x, dt, B, C = token
        state = jnp.exp(dt[..., None] * A[None]) * state
        state = state + (dt * x)[..., None] * B[:, :, None]
        return state, jnp.einsum("bgrn,bgn->bgr", state, C)

    inputs = (x.reshape(grouped), dt.reshape(grouped), B, C)
    time_first = tuple(
        jnp.moveaxis(z.astype(jnp.float32), 1, 0) for z in inputs
    )
    start = jnp.zeros((x.shape[0], *A.shape), jnp.float32)
    _, y = jax.lax.scan(step, start, time_first)
    return jnp.moveaxis(y, 0, 1).reshape(x.shape).astype(x.dtype)


def mlstm(q, k, v, input_gate, forget_gate):
    """Exponential input, sigmoid forget gate [B,T,H], stabilised."""
    scale = q.shape[-1] ** -0.5

    def step(state, token):
        C, n, m = state
        q, k, v, i, f = token
        kept = jax.nn.log_sigmoid(f) + m
        m = jnp.maximum(kept, i)
        keep, write = jnp.exp(kept - m), jnp.exp(i - m)
        k = write[..., None] * k
        C = keep[..., None, None] * C + k[..., :, None] * v[..., None, :]
        n = keep[..., None] * n + k
        below = jnp.abs(scale * jnp.einsum("bhk,bhk->bh", n, q))
        below = jnp.maximum(below, jnp.exp(-m)) + 1e-6
        above = scale * jnp.einsum("bhkv,bhk->bhv", C, q)
        return (C, n, m), above / below[..., None]

    inputs = (z.astype(jnp.float32) for z in (q, k, v, input_gate, forget_gate))
    time_first = tuple(jnp.moveaxis(z, 1, 0) for z in inputs)
    batch, _, heads, key_dim = k.shape
    start = (
        jnp.zeros((batch, heads, key_dim, v.shape[-1]), jnp.float32),
        jnp.zeros((batch, heads, key_dim), jnp.float32),
        # Not -inf, whose differences are NaN: far below any gate.
        jnp.full((batch, heads), -1e9, jnp.float32),
    )
    _, h = jax.lax.scan(step, start, time_first)
    return jnp.moveaxis(h, 0, 1).astype(v.dtype)


def rwkv4(k, v, log_decay, bonus):
    """A weighted average: k, v [B,T,D], log_decay and bonus [D]."""

    def step(state, token):
        num, den, m = state
        k, v = token
        top = jnp.maximum(m, k + bonus[None])
        past, here = jnp.exp(m - top), jnp.exp(k + bonus[None] - top)
        o = (past * num + here * v) / (past * den + here)
        top = jnp.maximum(m + log_decay[None], k)
        past, here = jnp.exp(m + log_decay[None] - top), jnp.exp(k - top)
        return (past * num + here * v, past * den + here, top), o

    time_first = tuple(
        jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (k, v)
    )
    zeros = jnp.zeros((k.shape[0], k.shape[2]), jnp.float32)
    start = (zeros, zeros, jnp.full_like(zeros, -jnp.inf))
    _, o = jax.lax.scan(step, start, time_first)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype)


def rwkv6(r, k, v, log_decay, bonus):
    """Read before the decay [B,T,H,K] and the write; bonus [H,K]."""

    def step(state, token):
        r, k, v, g = token
        write = k[..., :, None] * v[..., None, :]
        read = state + bonus[None, ..., None] * write
        y = jnp.einsum("bhk,bhkv->bhv", r, read)
        return jnp.exp(g)[..., None] * state + write, y

    inputs = tuple(
        jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (r, k, v, log_decay)
    )
    batch, _, heads, key_dim = k.shape
    start = jnp.zeros((batch, heads, key_dim, v.shape[-1]), jnp.float32)
    _, y = jax.lax.scan(step, start, inputs)
    y = key_dim**-0.5 * jnp.moveaxis(y, 0, 1)
    return y.astype(v.dtype)


def lightnet_attention(q, k, v):
    """A softmax over the past in every key channel: q, k [B,T,H,K]."""

    def step(state, token):
        S, z = state
        q, k, v = token
        after = jnp.logaddexp(z, k)
        write = jnp.exp(k - after)
        S = jnp.exp(z - after)[..., None] * S
        S = S + write[..., :, None] * v[..., None, :]
        return (S, after), jnp.einsum("bhk,bhkv->bhv", q, S)

    time_first = tuple(
        jnp.moveaxis(z.astype(jnp.float32), 1, 0) for z in (q, k, v)
    )
    batch, _, heads, key_dim = k.shape
    start = (
        jnp.zeros((batch, heads, key_dim, v.shape[-1]), jnp.float32),
        # Not -inf, whose differences are NaN: far below any key.
        jnp.full((batch, heads, key_dim), -1e9, jnp.float32),
    )
    _, y = jax.lax.scan(step, start, time_first)
    return (key_dim**-0.5 * jnp.moveaxis(y, 0, 1)).astype(v.dtype)


def gated_slot_attention(q, k, v, s, log_decay):
    """M slots, weights s and gates [B,T,H,M], a softmax between two reads."""
    scale = q.shape[-1] ** -0.5

    def step(state, token):
        keys, values = state
        q, k, v, s, g = token
        keep = jnp.exp(g)
        keys = keep[..., None, :] * keys + k[..., :, None] * s[..., None, :]
        values = keep[..., :, None] * values + s[..., :, None] * v[..., None, :]
        logits = scale * jnp.einsum("bhk,bhkm->bhm", q, keys)
        weights = jax.nn.softmax(logits, axis=-1)
        return (keys, values), jnp.einsum("bhm,bhmv->bhv", weights, values)

    inputs = (z.astype(jnp.float32) for z in (q, k, v, s, log_decay))
    time_first = tuple(jnp.moveaxis(z, 1, 0) for z in inputs)
    batch, _, heads, slots = s.shape
    start = (
        jnp.zeros((batch, heads, q.shape[-1], slots), jnp.float32),
        jnp.zeros((batch, heads, slots, v.shape[-1]), jnp.float32),
    )
    _, y = jax.lax.scan(step, start, time_first)
    return jnp.moveaxis(y, 0, 1).astype(v.dtype)


def log_linear_attention(q, k, v, log_decay, level_scales):
    """A Fenwick tree of states: level_scales [B,T,H,L], unscaled."""
    levels = level_scales.shape[-1]

    def step(state, token):
        q, k, v, g, weights, position = token
        # The lowest set bit of the position: all levels below merge into it.
        bit = 32 - jax.lax.clz(position & -position)
        low = (jnp.arange(levels) <= bit)[:, None, None, None, None]
        top = (jnp.arange(levels) == bit)[:, None, None, None, None]
        merged = jnp.sum(jnp.where(low, state, 0), axis=0, keepdims=True)
        state = jnp.where(top, merged, jnp.where(low, 0, state))
        state = jnp.exp(g)[None, ..., None, None] * state
        state = state.at[0].add(k[..., :, None] * v[..., None, :])
        return state, jnp.einsum("bhl,bhk,lbhkv->bhv", weights, q, state)

    inputs = (z.astype(jnp.float32) for z in (q, k, v, log_decay, level_scales))
    time_first = [jnp.moveaxis(z, 1, 0) for z in inputs]
    batch, length, heads, key_dim = k.shape
    shape = (levels, batch, heads, key_dim, v.shape[-1])
    positions = jnp.arange(length, dtype=jnp.int32)
    _, y = jax.lax.scan(
        step, jnp.zeros(shape, jnp.float32), (*time_first, positions)
    )
    return jnp.moveaxis(y, 0, 1).astype(v.dtype)
