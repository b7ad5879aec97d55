"""Elementwise recurrences: step by step, in chunks, and as T x T matrices.

    h_t = a_t h_{t-1} + x_t,   a_t = exp(log_decay_t)

Backward is the same recurrence from the end, on the cotangents g of h:

    G_t = g_t + a_{t+1} G_{t+1},   dx_t = G_t,   dlog_t = h_{t-1} a_t G_t

The gate gradient is one product a token: nothing is summed, nothing cancels.
A document's first token, a gate of -inf and any gate below the range of exp
have a = 0 exactly, and with it gradient 0.  Complex numbers follow JAX: a
cotangent passes through a product without conjugation.

Chunks are walked side by side, twice: from zero states for what each of them
writes and lets through, then from the states that enter them.  That takes
2 C + T/C dependent steps instead of T.  A CPU gains nothing from it: there one
chunk holds the whole sequence, is walked once, and a step over a token is one
pass over the state.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _decays
from seqjax.parallel import elementwise


def factors(log_decay: jax.Array, starts: jax.Array | None) -> jax.Array:
    """The factors exp(log_decay), 0 where a document starts.

    Args:
      log_decay: [B, ...], real or complex, real part <= 0, -inf included.
      starts: bool, of the leading axes of `log_decay`, or None.

    Returns:
      [B, ...]: exactly 0 for every gate that leaves nothing.
    """
    if jnp.issubdtype(log_decay.dtype, jnp.complexfloating):
        # Masked before exp: -inf beside an imaginary part would give NaN.
        dead = recurrence.vanishes(log_decay)
        a = jnp.where(dead, 0, jnp.exp(jnp.where(dead, 0, log_decay)))
    else:
        a = jnp.exp(log_decay)
    if starts is None:
        return a
    trailing = (1,) * (log_decay.ndim - starts.ndim)
    return jnp.where(starts.reshape(starts.shape + trailing), 0, a)


def recurrent(x, log_decay, starts, initial):
    """One token after the other; shapes as in `chunked`."""

    def step(state, token):
        x, log, start = token
        affine = recurrence.Affine(recurrence.decay_of(log), x)
        if start is not None:
            affine = recurrence.reset(affine, start)
        state = recurrence.apply(affine, state)
        return state, state

    tokens = (x, log_decay, starts)
    if x.shape[1] == 1:  # decoding: no loop around a single step
        state, y = step(
            initial, jax.tree.map(lambda x: jnp.squeeze(x, 1), tokens)
        )
        return y[:, None], state
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    state, y = jax.lax.scan(step, initial, tokens)
    return jnp.moveaxis(y, 0, 1), state


def parallel(x, log_decay, starts, initial):
    """All pairs at once, T x T decays an element; shapes as in `chunked`."""
    log_decay = jnp.moveaxis(log_decay, 1, -1)  # [B, ..., T]
    if starts is not None:
        middle = (1,) * (log_decay.ndim - 2)
        starts = starts.reshape(len(starts), *middle, -1)
    log, zeros = _decays.finite_part(log_decay, starts)
    decays = _decays.chunk_decays(
        log, zeros, shape=log_decay.shape, dtype=x.dtype
    )
    y = jnp.einsum(
        "b...ij,bj...->bi...",
        decays.pairs,
        x,
        precision=jax.lax.Precision.HIGHEST,
    )
    y += jnp.moveaxis(decays.head, -1, 1) * initial[:, None]
    return y, y[:, -1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked(chunk_size: int, x, log_decay, starts, initial):
    """Chunks side by side, with the derivative written out.

    Args:
      chunk_size: tokens walked one after the other.
      x: [B, T, ...] in the accumulation dtype.
      log_decay: like `x`.
      starts: bool [B, T], where a document starts, or None.
      initial: [B, ...], like a token of `x`.

    Returns:
      (h [B, T, ...], the last of them [B, ...]).
    """
    return _forward(chunk_size, x, log_decay, starts, initial)[0]


def _forward(chunk_size, x, log_decay, starts, initial):
    def step(a, x, state):
        state = a * state + x
        return state, state

    h, final = _walk(step, chunk_size, x, log_decay, starts, initial)
    return (h, final), (log_decay, starts, initial, h)


def _backward(chunk_size, residual, cotangents):
    log_decay, starts, initial, h = residual
    h_bar, final_bar = cotangents

    def step(a, h_bar, carry):
        x_bar = h_bar + carry
        return a * x_bar, x_bar

    x_bar, initial_bar = _walk(
        step, chunk_size, h_bar, log_decay, starts, final_bar, reverse=True
    )
    before = jnp.concatenate([initial[:, None], h[:, :-1]], axis=1)
    log_bar = before * factors(log_decay, starts) * x_bar
    return x_bar, log_bar, None, initial_bar


chunked.defvjp(_forward, _backward)


def _walk(step, size, x, log_decay, starts, initial, reverse=False):
    """Applies `step` to every token, chunks of `size` side by side.

    Args:
      step: (a, x, state) -> (state, y), affine in the state with factor a.
      size: tokens a chunk.
      x: [B, T, ...].
      log_decay: like `x`.
      starts: bool [B, T] or None.
      initial: [B, ...].
      reverse: from the last token to the first.

    Returns:
      (y [B, T, ...], state [B, ...]).
    """
    batch, length, *rest = x.shape
    chunks = -(-length // size)
    tokens = (_split(x, chunks, size), _split(log_decay, chunks, size))
    if starts is not None:
        tokens += (_split(starts, chunks, size),)
    varying = recurrence.varying_axes(x)

    def token(i):
        i = size - 1 - i if reverse else i
        x, log, *start = (
            jax.lax.dynamic_index_in_dim(t, i, 2, keepdims=False)
            for t in tokens
        )
        return i, factors(log, start[0] if start else None), x

    state = initial[:, None]
    if chunks > 1:

        def compose(i, affine):
            product, update = affine
            _, a, x = token(i)
            return a * product, step(a, x, update)[0]

        zero = jnp.zeros((batch, chunks, *rest), x.dtype)
        one = jnp.ones_like(zero)
        product, update = jax.lax.fori_loop(
            0, size, compose, recurrence.match_varying((one, zero), varying)
        )
        maps = recurrence.Affine(elementwise.decay_of_product(product), update)
        maps = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), maps)
        state, _ = recurrence.exclusive_prefix(maps, initial, reverse=reverse)
        state = jnp.moveaxis(state, 0, 1)

    def write(i, carry):
        state, y = carry
        i, a, x = token(i)
        state, here = step(a, x, state)
        y = jax.lax.dynamic_update_index_in_dim(y, here, i, 2)
        return state, y

    y = jnp.zeros((batch, chunks, size, *rest), x.dtype)
    state, y = jax.lax.fori_loop(
        0, size, write, (state, recurrence.match_varying(y, varying))
    )
    y = y.reshape(batch, chunks * size, *rest)[:, :length]
    return y, state[:, 0 if reverse else -1]


def _split(x, chunks, size):
    """[B, T, ...] to [B, chunks, C, ...], padded with tokens of 0.

    A padding token is the identity: nothing is written, nothing decays.
    """
    batch, length, *rest = x.shape
    missing = chunks * size - length
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * len(rest))
    return x.reshape(batch, chunks, size, *rest)
