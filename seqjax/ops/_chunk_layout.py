"""Layouts of the chunk form.

Tokens are [B, T, H, D] outside.  A scan step works on keys [n, B, G, C, K],
values [n, B, G, C, R, V] and states [B, G, K, R, V], H = G*R, so that the R
value heads of a key head are one wide matrix product.  Gates and decays are
[n, B, G, R, C].  `split_*` order a whole sequence so, once for both directions;
`group` leaves the order within a step to the step.
"""

import jax
import jax.numpy as jnp


def rows(x):
    """A factor [n,B,G,R,C] of each token, to multiply values [n,B,G,C,R,V]."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def of_state(decay):
    """A decay [n,B,G,R] aligned to the axes of states [n,B,G,K,R,V]."""
    return jax.tree.map(lambda x: x[..., None, :], decay)


def split_keys(plan, x):
    """[B, T, G, K] to [steps, n, B, G, C, K], padded with identity tokens."""
    return _chunks(plan, x).transpose(1, 2, 0, 4, 3, 5)


def split_values(plan, x, groups):
    """[B, T, H, V] to [steps, n, B, G, C, R, V]."""
    x = _chunks(plan, x)
    x = x.reshape(*x.shape[:4], groups, -1, x.shape[-1])
    return x.transpose(1, 2, 0, 4, 3, 5, 6)


def split_gates(plan, x, groups):
    """[B, T, H] to [steps, n, B, G, R, C]."""
    x = _chunks(plan, x)
    x = x.reshape(*x.shape[:4], groups, -1)
    return x.transpose(1, 2, 0, 4, 5, 3)


def _chunks(plan, x):
    """[B, T, ...] to [B, steps, n, C, ...]."""
    pad = -x.shape[1] % (plan.group * plan.chunk_size)
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, plan.group, plan.chunk_size, *x.shape[2:])


def group(plan, x):
    """[B, T, ...] to [steps, B, n*C, ...], padded with identity tokens."""
    span = plan.chunk_size * plan.group
    pad = -x.shape[1] % span
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, span, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def join(x, length):
    """[steps, B, n*C, ...] to [B, T, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    return x[:, :length]


def keys(plan, x):
    """[B, n*C, G, K] to [n, B, G, C, K] in the accumulation dtype."""
    batch, _, groups, width = x.shape
    x = x.reshape(batch, plan.group, plan.chunk_size, groups, width)
    return x.transpose(1, 0, 3, 2, 4).astype(plan.dtype)


def to_tokens(x):
    """[n, B, G, C, R, D] to [B, n*C, H, D]."""
    n, batch, groups, size, repeat, width = x.shape
    x = x.transpose(1, 0, 3, 2, 4, 5)
    return x.reshape(batch, n * size, groups * repeat, width)


def heads(state, heads):
    """[B, H, K, V] to [B, G, K, R, V]."""
    batch, _, key, value = state.shape
    return state.reshape(batch, *heads, key, value).swapaxes(2, 3)


def unheads(state):
    """[B, G, K, R, V] to [B, H, K, V]."""
    batch, groups, key, repeat, value = state.shape
    return state.swapaxes(2, 3).reshape(batch, groups * repeat, key, value)
