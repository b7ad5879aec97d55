"""The additive rule with scalar gates: step by step, and as one T x T matrix.

Both are plain JAX, differentiable any number of times in both modes.
"""

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _decays


def scalar_recurrent(
    q, k, v, log_decay, starts, initial, *, scale, dtype, precision
):
    """One token after the other: `S = a S + k v^T`, `o = scale S^T q`.

    Shapes as in `_scalar_chunk.scalar_chunk`.
    """
    repeat = v.shape[2] // q.shape[2]
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    q, k = (jnp.repeat(x, repeat, axis=2) for x in (q, k))

    def step(state, token):
        q, k, v, log, start = token
        decay = recurrence.Decay() if log is None else recurrence.decay_of(log)
        write = k[..., :, None] * v[..., None, :]
        affine = recurrence.Affine(decay, write)
        if start is not None:
            affine = recurrence.reset(affine, start)
        state = recurrence.apply(affine, state)
        y = jnp.einsum("bhk,bhkv->bhv", q, state, precision=precision)
        return state, scale * y

    tokens = (q, k, v, log_decay, starts)
    if q.shape[1] == 1:  # decoding: no loop around a single step
        state, y = step(
            initial, jax.tree.map(lambda x: jnp.squeeze(x, 1), tokens)
        )
        return y[:, None], state
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    state, y = jax.lax.scan(step, initial, tokens)
    return jnp.moveaxis(y, 0, 1), state


def scalar_parallel(
    q, k, v, log_decay, starts, initial, *, scale, dtype, precision
):
    """All pairs at once: `o = scale [(Q K^T * D) V + head * (Q S)]`."""
    repeat = v.shape[2] // q.shape[2]
    # [B, T, H, D] to [B, H, T, D], every value head with its key head
    q, k, v = (x.astype(dtype).swapaxes(1, 2) for x in (q, k, v))
    q, k = (jnp.repeat(x, repeat, axis=1) for x in (q, k))
    if log_decay is not None:
        log_decay = log_decay.swapaxes(1, 2)
    if starts is not None:
        starts = starts[:, None, :]
    log, zeros = _decays.finite_part(log_decay, starts)
    decays = _decays.chunk_decays(log, zeros, shape=v.shape[:-1], dtype=dtype)

    def mm(subscripts, x, y):
        return jnp.einsum(subscripts, x, y, precision=precision)

    scores = mm("bhik,bhjk->bhij", q, k) * decays.pairs
    y = mm("bhij,bhjv->bhiv", scores, v)
    y += decays.head[..., None] * mm("bhik,bhkv->bhiv", q, initial)
    write = mm("bhjk,bhjv->bhkv", k, decays.tail[..., None] * v)
    state = recurrence.apply(recurrence.Affine(decays.total, write), initial)
    return (scale * y).swapaxes(1, 2), state
