"""Sums of forget gates in two floats.

A sum over many gates is carried as (high, low) with high + low its value to
about twice the precision of one float: next to a gate of -1e4, a plain float32
sum of gates near -0.05 is off by 2e-3 between neighbours.
"""

import jax
import jax.numpy as jnp


def finite(log_decay: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Gates that enter sums: 0 in place of -inf, and where not `keep`."""
    drop = jnp.isneginf(log_decay)
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
    pair = (x, jnp.zeros_like(x))
    if starts is None:
        return jax.lax.associative_scan(add, pair, reverse=reverse, axis=1)
    fresh = jnp.broadcast_to(starts[..., None], x.shape)

    def combine(earlier, later):
        (sums, fresh), (more, cut) = earlier, later
        total = add(sums, more)
        total = tuple(
            jnp.where(cut, m, t) for m, t in zip(more, total, strict=True)
        )
        return total, fresh | cut

    sums, _ = jax.lax.associative_scan(
        combine, (pair, fresh), reverse=reverse, axis=1
    )
    return sums
