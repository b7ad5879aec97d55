"""RWKV-4's weighted average: step by step, in chunks, and as T x T weights.

    o_t = (N_{t-1} + exp(u + k_t) v_t) / (Z_{t-1} + exp(u + k_t))
    N_t = exp(w) N_{t-1} + exp(k_t) v_t,    Z_t the same with v = 1

exp(k) overflows, so N and Z are kept as num exp(m) and den exp(m), with m the
running maximum m_t = max(m_{t-1} + w, k_t).  Every exponent below is the
difference of two numbers of which it is the smaller, taken first, so that what
m rounds away enters the factors and is not lost.

Backward, with the cotangents N', Z' of num_t and den_t, a = exp(m_{t-1} + w -
m_t), b = exp(k_t - m_t), and c = o' / (e den + f) for the factors e, f of the
past and of the token in o_t:

    v' = f c + b N'                 k' = f c (v - o) + b (N' v + Z')
    w' += a (N' num + Z' den)       u' += f c (v - o)
    N' <- a N' + e c                Z' <- a Z' - e c o

o does not depend on m; only the state does, by which m has a cotangent.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence


class RWKV4State(NamedTuple):
    """State of RWKV-4's average: the sums are num exp(max), den exp(max).

    Attributes:
      num: [B, D], weighted sum of values.
      den: [B, D], sum of weights.
      max: [B, D], the running maximum, always in the dtype of accumulation;
        -inf before any token.
    """

    num: jax.Array
    den: jax.Array
    max: jax.Array


class Tokens(NamedTuple):
    """k, v [..., B, D]; real and starts bool [..., B], None for all, none."""

    k: jax.Array
    v: jax.Array
    real: jax.Array | None
    starts: jax.Array | None


class _Factors(NamedTuple):
    past: jax.Array  # e, of num and den in o
    here: jax.Array  # f, of v in o
    keep: jax.Array  # a, of num and den in the new state
    write: jax.Array  # b, of v in the new state
    kept_max: jax.Array  # bool: the maximum is the old one, decayed
    max: jax.Array  # the new one


def _factors(log_decay, bonus, token, m):
    if token.starts is not None:
        m = jnp.where(token.starts[:, None], -jnp.inf, m)
    k = token.k
    ahead = (k - m) + bonus[None]  # +inf where nothing was before
    past = jnp.exp(-jnp.maximum(ahead, 0))
    here = jnp.exp(jnp.minimum(ahead, 0))
    decayed = m + log_decay[None]
    kept_max = decayed >= k
    after = jnp.where(kept_max, decayed, k)
    keep = jnp.exp((m - after) + log_decay[None])
    write = jnp.exp(k - after)
    if token.real is not None:
        real = token.real[:, None]
        keep = jnp.where(real, keep, 1)
        write = jnp.where(real, write, 0)
        kept_max = kept_max | ~real
        after = jnp.where(real, after, m)
    return _Factors(past, here, keep, write, kept_max, after)


def _step(log_decay, bonus, state, token):
    num, den, m = state
    f = _factors(log_decay, bonus, token, m)
    o = (f.past * num + f.here * token.v) / (f.past * den + f.here)
    num = f.keep * num + f.write * token.v
    den = f.keep * den + f.write
    return RWKV4State(num, den, f.max), o


def recurrent(k, v, log_decay, bonus, real, starts, initial):
    """One token after the other; shapes as in `chunked`."""
    step = functools.partial(_step, log_decay, bonus)
    tokens = Tokens(k, v, real, starts)
    if k.shape[1] == 1:  # decoding: no loop around a single step
        token = jax.tree.map(lambda x: jnp.squeeze(x, 1), tokens)
        state, o = step(initial, token)
        return o[:, None], state
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    state, o = jax.lax.scan(step, initial, tokens)
    return jnp.moveaxis(o, 0, 1), state


def parallel(k, v, log_decay, bonus, real, starts, initial):
    """A softmax over the past, T x T weights a channel; as `chunked`."""
    batch, length, _ = k.shape
    real = jnp.ones((batch, length), bool) if real is None else real
    starts = jnp.zeros_like(real) if starts is None else starts
    count = jnp.cumsum(real, axis=1)  # real tokens up to here
    document = jnp.cumsum(starts, axis=1)
    # Tokens between: behind j and before i, which decay what j wrote.
    between = count[:, :, None] - real[:, :, None] - count[:, None, :]
    same = document[:, :, None] == document[:, None, :]
    before = jnp.tri(length, k=-1, dtype=bool)[None]
    seen = same & before & real[:, None, :]
    now = jnp.eye(length, dtype=bool)[None]
    logits = k[:, None, :, :] + _power(log_decay, between)
    logits = jnp.where(
        now[..., None], (k + bonus[None, None])[:, :, None], logits
    )
    logits = jnp.where((seen | now)[..., None], logits, -jnp.inf)
    old = initial.max[:, None] + _power(log_decay, count - real)
    old = jnp.where((document == 0)[..., None], old, -jnp.inf)
    o, _ = _average(logits, old, v, initial, "bijd,bjd->bid")

    left = count[:, -1:] - count  # decays between a token and the end
    last = real & (document == document[:, -1:])
    logits = jnp.where(last[..., None], k + _power(log_decay, left), -jnp.inf)
    old = initial.max + _power(log_decay, count[:, -1])
    old = jnp.where((document == 0)[:, -1:], old, -jnp.inf)
    _, state = _average(logits, old, v, initial, "bjd,bjd->bd")
    return o, state


def _power(log_decay, times):
    """log_decay [D] times a count [...]: [..., D], 0 for -inf no times."""
    times = times[..., None]
    rows = log_decay.reshape((1,) * (times.ndim - 1) + log_decay.shape)
    finite = jnp.where(times > 0, rows, 0)
    return jnp.where(times > 0, times * finite, 0)


def _maximum(logits, old):
    """The largest along axis -2 and `old`; of equals the oldest, as `_step`.

    Its derivative goes by the index.  That of jnp.max compares the logits with
    their maximum, which a compiler that computes them twice makes unequal.
    """
    top = jnp.argmax(logits, axis=-2, keepdims=True)
    chosen = jax.lax.broadcasted_iota(top.dtype, logits.shape, logits.ndim - 2)
    largest = jnp.sum(jnp.where(chosen == top, logits, 0), axis=-2)
    return jnp.where(old >= largest, old, largest)


def _average(logits, old, v, initial, subscripts):
    """Weighted average, and its parts, of tokens along axis -2 and a state."""
    m = _maximum(logits, old)
    safe = jnp.where(m == -jnp.inf, 0, m)
    weights = jnp.exp(logits - jnp.expand_dims(safe, -2))
    old = jnp.exp(old - safe)
    lead = (slice(None),) + (None,) * (old.ndim - 2)
    num = jnp.einsum(
        subscripts, weights, v, precision=jax.lax.Precision.HIGHEST
    )
    num = num + old * initial.num[lead]
    den = jnp.sum(weights, axis=-2) + old * initial.den[lead]
    o = num / jnp.where(m == -jnp.inf, 1, den)
    return o, RWKV4State(num, den, m)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked(chunk_size: int, k, v, log_decay, bonus, real, starts, initial):
    """A loop over chunks that keeps the states between them.

    Args:
      chunk_size: tokens whose states the backward pass makes again at once.
      k: [B, T, D], finite, at most 1e9 / T in float32 (see `rwkv4`); this and
        all floats in the accumulation dtype.
      v: [B, T, D].
      log_decay: [D].
      bonus: [D].
      real: bool [B, T], or None where no token is padding.
      starts: bool [B, T], where a document starts, or None.
      initial: `RWKV4State`.

    Returns:
      (o [B, T, D], arbitrary at padding; `RWKV4State`).
    """
    del chunk_size  # without a derivative there is no state to keep
    return recurrent(k, v, log_decay, bonus, real, starts, initial)


def _forward(size, k, v, log_decay, bonus, real, starts, initial):
    real = _cover(size, k, real)
    chunks = _split(size, Tokens(k, v, real, starts))
    step = functools.partial(_step, log_decay, bonus)

    def chunk(state, tokens):
        after, o = jax.lax.scan(step, state, tokens)
        return after, (o, state)

    final, (o, states) = jax.lax.scan(chunk, initial, chunks)
    residual = (k, v, log_decay, bonus, real, starts, states, final)
    return (_join(o, k.shape[1]), final), residual


def _backward(size, residual, cotangents):
    k, v, log_decay, bonus, real, starts, states, final = residual
    o_bar, (num_bar, den_bar, max_bar) = cotangents
    chunks = _split(size, Tokens(k, v, real, starts))
    o_bars = _split(size, o_bar)
    # From sums divided by exp(m) to the sums themselves, m held.
    max_bar = max_bar - (num_bar * final.num + den_bar * final.den)

    def again(state, token):
        return _step(log_decay, bonus, state, token)[0], state

    def step(carry, token):
        (num_bar, den_bar, max_bar), (decay_bar, bonus_bar) = carry
        token, o_bar, (num, den, m) = token
        f = _factors(log_decay, bonus, token, m)
        below = f.past * den + f.here
        o = (f.past * num + f.here * token.v) / below
        c = o_bar / below
        here_bar = f.here * c * (token.v - o)
        k_bar = here_bar + f.write * (num_bar * token.v + den_bar)
        v_bar = f.here * c + f.write * num_bar
        log_bar = f.keep * (num_bar * num + den_bar * den)
        old_bar = jnp.where(f.kept_max, max_bar, 0)
        k_bar = k_bar + (max_bar - old_bar)
        log_bar = log_bar + old_bar
        if token.real is not None:
            log_bar = jnp.where(token.real[:, None], log_bar, 0)
        num_bar = f.keep * num_bar + f.past * c
        den_bar = f.keep * den_bar - f.past * c * o
        bars = (num_bar, den_bar, old_bar)
        sums = (decay_bar + log_bar, bonus_bar + here_bar)
        return (bars, sums), (k_bar, v_bar)

    def chunk(carry, group):
        bars, sums = carry
        tokens, o_bar, state = group
        _, before = jax.lax.scan(again, state, tokens)
        parts = jax.tree.map(jnp.zeros_like, sums)
        (bars, parts), token_bars = jax.lax.scan(
            step, (bars, parts), (tokens, o_bar, before), reverse=True
        )
        sums = jax.tree.map(jnp.add, sums, parts)
        return (bars, sums), token_bars

    bars = (num_bar, den_bar, max_bar)
    sums = jax.tree.map(jnp.zeros_like, (num_bar, den_bar))
    carry = recurrence.match_varying((bars, sums), recurrence.varying_axes(k))
    (bars, sums), token_bars = jax.lax.scan(
        chunk, carry, (chunks, o_bars, states), reverse=True
    )
    k_bar, v_bar = (_join(x, k.shape[1]) for x in token_bars)
    decay_bar, bonus_bar = (jnp.sum(x, axis=0) for x in sums)
    decay_bar = jnp.where(recurrence.vanishes(log_decay), 0, decay_bar)
    num_bar, den_bar, max_bar = bars
    first = jax.tree.map(lambda x: x[0], states)
    max_bar = max_bar + (num_bar * first.num + den_bar * first.den)
    initial_bar = RWKV4State(num_bar, den_bar, max_bar)
    return k_bar, v_bar, decay_bar, bonus_bar, None, None, initial_bar


chunked.defvjp(_forward, _backward)


def _cover(size, k, real):
    """`real`, made where the last chunk is filled up with padding."""
    if real is None and k.shape[1] % size:
        real = jnp.ones(k.shape[:2], bool)
        real = recurrence.match_varying(real, recurrence.varying_axes(k))
    return real


def _split(size, tree):
    """[B, T, ...] to [chunks, C, B, ...], filled up with zeros."""

    def split(x):
        x = jnp.moveaxis(x, 1, 0)
        missing = -x.shape[0] % size
        x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, tree)


def _join(x, length):
    """[chunks, C, B, ...] to [B, T, ...]."""
    x = x.reshape(-1, *x.shape[2:])[:length]
    return jnp.moveaxis(x, 0, 1)
