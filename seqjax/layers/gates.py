"""Log decays from projections, as the papers make them.

| function | log decay | in |
|---|---|---|
| sigmoid_decay | log sigmoid(x) / normalizer | GLA, simple GLA, GSA |
| softplus_decay | -exp(A_log) softplus(x + bias) | Mamba-2, GDN, KDA, Comba |
| floored_decay | floor * sigmoid(exp(A_log) (x + bias)) | KDA, "safe gate" |
| lower_bounded_decay | log(l + (1 - l) sigmoid(x)) | HGRN, HGRN2 |
| exponential_decay | -exp(x) | RWKV-6 |
| bounded_decay | -exp(-1/2) sigmoid(x) | RWKV-7 |

All are at most 0 and float32 (float64 for float64 input), whatever the size of
x.
"""

import math

import jax
import jax.numpy as jnp

from seqjax.layers import norms


def sigmoid_decay(x: jax.Array, normalizer: float) -> jax.Array:
    """GLA's gate (arXiv 2312.06635); x [...] any float, normalizer 16."""
    return jax.nn.log_sigmoid(_wide(x)) / normalizer


def softplus_decay(
    x: jax.Array, A_log: jax.Array, bias: jax.Array
) -> jax.Array:
    """Mamba-2's gate (arXiv 2405.21060); A_log and bias broadcast against x."""
    x = _wide(x)
    return -jnp.exp(A_log.astype(x.dtype)) * jax.nn.softplus(
        x + bias.astype(x.dtype)
    )


def floored_decay(
    x: jax.Array, A_log: jax.Array, bias: jax.Array, floor: float
) -> jax.Array:
    """KDA's gate that is never below `floor`, a number below 0."""
    x = _wide(x)
    return floor * jax.nn.sigmoid(
        jnp.exp(A_log.astype(x.dtype)) * (x + bias.astype(x.dtype))
    )


def lower_bounded_decay(
    x: jax.Array, lower_bound: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """HGRN's forget gate f = l + (1 - l) sigmoid(x) (arXiv 2311.04823).

    Args:
      x: [..., D], any float.
      lower_bound: l, float [D] in [0, 1), or None for 0.  A bound of exactly 0
        gets no gradient, as in the first layer of a model.

    Returns:
      log f and 1 - f, each [..., D], both to full relative precision.
    """
    x = _wide(x)
    if lower_bound is None:
        return jax.nn.log_sigmoid(x), jax.nn.sigmoid(-x)
    bound = lower_bound.astype(x.dtype)
    forgotten = (1 - bound) * jax.nn.sigmoid(-x)
    # Near 0 the log of f is that of 1 - forgotten; near 1 it would cancel.
    positive = bound > 0
    safe = jnp.where(positive, bound, 0.5)
    log_sigmoid = jax.nn.log_sigmoid(x)
    far = jnp.logaddexp(jnp.log(safe), jnp.log1p(-safe) + log_sigmoid)
    near = forgotten < 0.5
    log_f = jnp.where(near, jnp.log1p(-jnp.where(near, forgotten, 0)), far)
    return jnp.where(positive, log_f, log_sigmoid), forgotten


def lower_bounds(table: jax.Array) -> jax.Array:
    """The bounds of all layers from their parameters (arXiv 2311.04823).

    l = cumsum(p) - p_0 with p the softmax over the layers: from 0 in the first
    layer up, with table 0 the bound of layer i is i / L.

    Args:
      table: float [L, D].

    Returns:
      [L, D], in [0, 1); the first row exactly 0.
    """
    table = _wide(table)
    share = jax.nn.softmax(table, axis=0)
    later = jnp.cumsum(share[1:], axis=0)
    return jnp.concatenate([jnp.zeros_like(table[:1]), later])


def exponential_decay(x: jax.Array) -> jax.Array:
    """RWKV-6's gate (arXiv 2404.05892)."""
    return -jnp.exp(_wide(x))


def bounded_decay(x: jax.Array) -> jax.Array:
    """RWKV-7's gate (arXiv 2503.14456): no decay is stronger than 0.6065."""
    return -math.exp(-0.5) * jax.nn.sigmoid(_wide(x))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(norms.wide(x.dtype))
