"""The additive rule with channel gates as one T x T matrix.

Plain JAX, differentiable any number of times in both modes; the step-by-step
form is that of scalar gates.  Time and memory O(T^2 K): an oracle for small T.
"""

import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _decays


def channel_parallel(
    q, k, v, log_decay, starts, initial, *, scale, dtype, precision
):
    """All pairs at once: `o = scale [A V + (Q * head) S]`.

    Shapes as in `_channel_chunk.channel_chunk`.
    """
    repeat = v.shape[2] // q.shape[2]
    # [B, T, H, D] to [B, H, T, D], every value head with its key head
    q, k, v = (x.astype(dtype).swapaxes(1, 2) for x in (q, k, v))
    q, k = (jnp.repeat(x, repeat, axis=1) for x in (q, k))
    log = log_decay.transpose(0, 2, 3, 1)  # [B, H, K, T]
    if starts is not None:
        starts = starts[:, None, None, :]
    log, zeros = _decays.finite_part(log, starts)
    decays = _decays.chunk_decays(log, zeros, shape=log.shape, dtype=dtype)

    def mm(subscripts, x, y):
        return jnp.einsum(subscripts, x, y, precision=precision)

    products = q[..., :, None, :] * k[..., None, :, :]  # [B, H, T, T, K]
    scores = jnp.sum(products * jnp.moveaxis(decays.pairs, 2, -1), axis=-1)
    y = mm("bhij,bhjv->bhiv", scores, v)
    y += mm("bhik,bhkv->bhiv", q * decays.head.mT, initial)
    write = mm("bhjk,bhjv->bhkv", k * decays.tail.mT, v)
    state = recurrence.apply(recurrence.Affine(decays.total, write), initial)
    return (scale * y).swapaxes(1, 2), state
