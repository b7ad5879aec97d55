"""Sums of forget gates in two floats.

A sum over many gates is carried as (high, low) with high + low its value to
about twice the precision of one float: next to a gate of -1e4, a plain float32
sum of gates near -0.05 is off by 2e-3 between neighbours.
"""

import math

import jax
import jax.numpy as jnp

from seqjax import recurrence


def finite(log_decay: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Gates that enter sums: 0 in place of -inf, and where not `keep`."""
    drop = recurrence.vanishes(log_decay)
    if keep is not None:
        drop |= ~keep
    return jnp.where(drop, jnp.zeros_like(log_decay), log_decay)


@jax.custom_jvp
def add(x, y):
    """The sum of two (high, low) pairs, again with |low| <= ulp(high) / 2."""
    (a, a_low), (b, b_low) = x, y
    high = a + b
    rest = high - a
    low = (a - (high - rest)) + (b - rest) + (a_low + b_low)
    total = high + low
    return total, low - (total - high)


@add.defjvp
def _add_jvp(primals, tangents):
    # `low` is rounding: only `high` has a derivative.
    (a, a_low), (b, b_low) = tangents
    high, low = add(*primals)
    return (high, low), (a + b + (a_low + b_low), jnp.zeros_like(low))


def cumulative(
    x: jax.Array, starts: jax.Array | None = None, *, reverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Inclusive cumulative sums (high, low) along time.

    Args:
      x: [B, T, H], finite.
      starts: bool [B, T] or None; the sum begins anew at each of them, so that
        no rounding of one document reaches the next.
      reverse: sum from the end.

    Returns:
      Two arrays [B, T, H].
    """
    batch, length, heads = x.shape
    if reverse:
        x = x[:, ::-1]
        starts = None if starts is None else starts[:, ::-1]
    # Runs of about sqrt(T) tokens side by side, then from run to run: few
    # steps, and far less to compile than an associative scan.
    size = math.isqrt(max(length - 1, 0)) + 1
    runs = -(-length // size)
    pad = ((0, 0), (0, runs * size - length), (0, 0))
    if starts is None:
        starts = jnp.zeros((batch, length), bool)

    def split(a):
        a = jnp.pad(a, pad).reshape(batch, runs, size, a.shape[-1])
        return a.transpose(2, 1, 0, 3)  # [size, runs, B, H]

    def step(before, token):
        sums, cut = before
        more, fresh = token
        total = add(sums, more)
        sums = tuple(
            jnp.where(fresh, m, t) for m, t in zip(more, total, strict=True)
        )
        return (sums, cut | fresh), (sums, cut | fresh)

    def inclusive(more, fresh):
        zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), (more, fresh))
        return jax.lax.scan(step, zero, (more, fresh))[1]

    x, fresh = split(x), split(starts[..., None])
    local, cut = inclusive((x, jnp.zeros_like(x)), fresh)
    (totals, ends) = jax.tree.map(lambda a: a[-1], (local, cut))
    before = tuple(
        jnp.pad(a[:-1], ((1, 0), (0, 0), (0, 0)))[None]
        for a in inclusive(totals, ends)[0]
    )
    total = add(before, local)

    def join(own, with_before):
        a = jnp.where(cut, own, with_before).transpose(2, 1, 0, 3)
        a = a.reshape(batch, runs * size, heads)[:, :length]
        return a[:, ::-1] if reverse else a

    high, low = map(join, local, total)
    return high, low
