"""Decays between the tokens of one chunk, for one gate a token and head.

    L_ij = sum of the log gates of tokens j+1 .. i          (i >= j)

L_ij must not be the difference of two plain cumulative sums: beside one gate of
-1e4, float32 sums are off by 2e-3 between mild neighbours.  Two ways serve:

- `segment_sums` sums every L_ij on its own, by a product of masked triangles:
  C multiply-adds a pair, linear, differentiable as it stands;
- `two_float_sums` takes differences of cumulative sums carried as two floats
  (high and low part), which keep 48 bits: C log C additions for all pairs.

The gate gradient is the transpose of the first, `rectangle_sums`: token t
receives the sum over the rectangle i >= t > j.  A reverse cumulative sum of row
minus column sums is the same number with cancelling terms, and useless.

Document borders and gates of -inf are no numbers in these sums.  They are
counted, and a pair with one in between has decay 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.recurrence import two_floats

_EXACT = jax.lax.Precision.HIGHEST


class ChunkDecays(NamedTuple):
    """Decays of a chunk of C tokens; `log` parts are finite wherever masked.

    Attributes:
      pairs: [..., C, C], exp(L_ij) for i >= j, 0 elsewhere.
      head: [..., C], from in front of the chunk through token i.
      total: `recurrence.Decay` of the whole chunk, arrays [...].
    """

    pairs: jax.Array
    head: jax.Array
    total: recurrence.Decay

    @property
    def tail(self) -> jax.Array:
        """[..., C]: from behind token j through the end of the chunk."""
        return self.pairs[..., -1, :]


def finite_part(
    log_decay: jax.Array | None, starts: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
    """Splits gates into finite logarithms and a count of zeros.

    Args:
      log_decay: [..., C], any values <= 0, -inf included; or None.
      starts: bool [..., C], where a document starts; or None.

    Returns:
      (log, zeros): the gates with 0 in place of -inf, and a float count of the
      zero factors of each token (None where there can be none).
    """
    zeros = None if starts is None else starts.astype(jnp.float32)
    if log_decay is None:
        return None, zeros
    dead = recurrence.vanishes(log_decay)
    finite = jnp.where(dead, jnp.zeros_like(log_decay), log_decay)
    counted = dead.astype(jnp.float32)
    return finite, counted if zeros is None else counted + zeros


def segment_sums(log: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All sums of consecutive gates.

    Args:
      log: [..., C], finite.

    Returns:
      (pairs, head): pairs [..., C, C] holds L_ij for i > j and 0 elsewhere;
      head [..., C] the sum of tokens 0 .. i.
    """
    size = log.shape[-1]
    upto = _lead(jnp.tri(size, dtype=bool), log.ndim + 1)  # [i, m]: m <= i
    after = jnp.tri(size, k=-1, dtype=log.dtype)  # [m, j]: m > j
    rows = jnp.where(upto, log[..., None, :], 0)
    pairs = jnp.einsum("...im,mj->...ij", rows, after, precision=_EXACT)
    return pairs, jnp.sum(rows, axis=-1)


def two_float_sums(
    log: jax.Array, starts: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The sums of `segment_sums` at less cost, not to be differentiated.

    Args:
      log: [..., C], finite.
      starts: bool [..., C] or None: sums begin anew where a document starts,
        so that not one bit of a document depends on its neighbours.

    Returns:
      (pairs, head): as `segment_sums`, but pairs holds arbitrary numbers where
      i < j or a start lies in between, and head where a start lies before i.
    """
    size = log.shape[-1]
    high, low = log, jnp.zeros_like(log)
    step = 1
    while step < size:
        more_high, more_low = _shift(high, step), _shift(low, step)
        if starts is not None:
            more_high = jnp.where(starts, 0, more_high)
            more_low = jnp.where(starts, 0, more_low)
            starts = starts | _shift(starts, step)
        high, error = two_floats.two_sum(high, more_high)
        high, low = two_floats.two_sum(high, low + more_low + error)
        step *= 2
    # Without the barrier XLA fuses the whole ladder into the C x C consumers
    # and repeats it for every pair: 3 ms instead of 0.3 for 64 chunks of 64.
    high, low = jax.lax.optimization_barrier((high, low))
    pairs = (high[..., :, None] - high[..., None, :]) + (
        low[..., :, None] - low[..., None, :]
    )
    return pairs, high


def rectangle_sums(pairs: jax.Array, head: jax.Array) -> jax.Array:
    """The transpose of `segment_sums`.

    Args:
      pairs: [..., C, C]; only i > j is read.
      head: [..., C].

    Returns:
      [..., C]: for token t the sum of pairs over i >= t > j, plus the sum of
      head over i >= t.
    """
    size = pairs.shape[-1]
    below = _lead(jnp.tri(size, k=-1, dtype=bool), pairs.ndim)  # [i, j]: i > j
    before = jnp.tri(size, k=-1, dtype=pairs.dtype)  # [t, j]: t > j
    rows = jnp.einsum(
        "...ij,tj->...it",
        jnp.where(below, pairs, 0),
        before,
        precision=_EXACT,
    )
    upto = _lead(jnp.tri(size, dtype=bool), pairs.ndim)  # [i, t]: i >= t
    return jnp.sum(jnp.where(upto, rows + head[..., None], 0), axis=-2)


def chunk_decays(
    log: jax.Array | None,
    zeros: jax.Array | None,
    *,
    shape: tuple[int, ...],
    dtype,
    sums: tuple[jax.Array, jax.Array] | None = None,
) -> ChunkDecays:
    """Decays of a chunk from its gates.

    Args:
      log: finite gates [..., C] or None (no decay).
      zeros: count of zero factors [..., C] or None; leading axes broadcast.
      shape: (..., C), the shape of gates, needed where `log` is None.
      dtype: of the result.
      sums: of `two_float_sums`; default `segment_sums(log)`.

    Returns:
      `ChunkDecays`.
    """
    size = shape[-1]
    keep = _lead(jnp.tri(size, dtype=bool), len(shape) + 1)
    alive = None
    total_zeros = None
    if zeros is not None:
        # Counts up to 2C are exact in float32.
        count = jnp.einsum(
            "...m,im->...i",
            zeros,
            jnp.tri(size, dtype=zeros.dtype),
            precision=_EXACT,
        )
        keep = keep & (count[..., :, None] == count[..., None, :])
        alive = count == 0
        total_zeros = count[..., -1].astype(jnp.int32)
    if log is None:
        pairs = jnp.broadcast_to(keep, (*shape, size)).astype(dtype)
        head = jnp.ones(shape, dtype)
        total = recurrence.Decay(None, total_zeros)
    else:
        pair_sums, head_sums = segment_sums(log) if sums is None else sums
        # Mask before exp: elsewhere a sum may be positive and overflow.
        pairs = jnp.where(keep, jnp.exp(jnp.where(keep, pair_sums, 0)), 0)
        head = jnp.exp(head_sums)
        total = recurrence.Decay(head_sums[..., -1], total_zeros)
    if alive is not None:
        head = jnp.where(alive, head, 0)
    return ChunkDecays(pairs, head, total)


def _lead(x: jax.Array, rank: int) -> jax.Array:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def _shift(x: jax.Array, by: int) -> jax.Array:
    pad = ((0, 0),) * (x.ndim - 1) + ((by, 0),)
    return jnp.pad(x[..., :-by], pad)
