"""Chunk form of the selective scan: one decay an element of [D, N].

    h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t          y_t = C_t h_t

The decays of a token are a full [D, N], so no product of matrices composes
tokens; a step over a token is a pass over the state, and all that matters is
never to write those passes to memory.  A scan over chunks keeps the state in
front of each; the backward pass walks a chunk forward again to have its states,
then back:

    G_t = C_t dy_t + a_{t+1} G_{t+1}        a_t = exp(dt_t A)
    dlog_t = a_t G_t h_{t-1}                the cotangent of dt_t A
    dA = sum dt dlog       ddt = A . dlog + x (B . G)       dx = dt (B . G)
    dB = G (dt x)          dC = h dy

Time O(D N) a token; memory for the backward pass the inputs, D N / C numbers a
token for the states between chunks, and 2 C states inside one.

Arrays inside a step are [B, G, N, R], channels last: a token's B and C meet the
state along N, which then is a sum over rows and not inside a register.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _elementwise


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable)."""

    chunk_size: int
    precision: jax.lax.Precision


class Tokens(NamedTuple):
    """x, dt [..., B, G, R], B and C [..., B, G, N], starts bool [..., B]."""

    x: jax.Array
    dt: jax.Array
    B: jax.Array
    C: jax.Array
    starts: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def selective_chunk(plan: Plan, x, dt, A, B, C, starts, initial):
    """Output [B, T, D] and final state [B, D, N] of the selective scan.

    Args:
      plan: static choices.
      x: [B, T, D], this and all floats in the accumulation dtype.
      dt: [B, T, D].
      A: [D, N].
      B: [B, T, G, N]; channel d reads group d // (D/G).
      C: [B, T, G, N].
      starts: bool [B, T], where a document starts, or None.
      initial: [B, D, N].

    Returns:
      (y, state).
    """
    return _forward(plan, x, dt, A, B, C, starts, initial)[0]


def _forward(plan, x, dt, A, B, C, starts, initial):
    chunks = _split(plan, x, dt, B, C, starts)
    A_rows = to_rows(A, B.shape[2])

    def step(state, token):
        state = _update(A_rows, state, token)[1]
        return state, _sum_rows(state * token.C[..., None])

    def chunk(state, tokens):
        after, y = jax.lax.scan(step, state, tokens)
        return after, (y, state)

    final, (y, states) = jax.lax.scan(
        chunk, to_rows(initial, B.shape[2]), chunks
    )
    residual = (x, dt, A, B, C, starts, states)
    return (_join(y, x.shape), of_rows(final)), residual


def _update(A, state, token):
    """The factors of a token and the state behind it, [B, G, N, R]."""
    log = token.dt[:, :, None] * A[None]
    a = _elementwise.factors(log, token.starts)
    write = (token.dt * token.x)[:, :, None] * token.B[..., None]
    return a, a * state + write


def _backward(plan, residual, cotangents):
    x, dt, A, B, C, starts, states = residual
    y_bar, final_bar = cotangents
    groups = B.shape[2]
    chunks = _split(plan, x, dt, B, C, starts)
    y_bars = _split_one(plan, y_bar, groups)
    A_rows = to_rows(A, groups)

    def again(state, token):
        return _update(A_rows, state, token)[1], state

    def step(carry, token):
        state_bar, A_bar = carry
        token, y_bar, before = token
        a, _ = _update(A_rows, before, token)
        h_bar = state_bar + y_bar[:, :, None] * token.C[..., None]
        state_bar = a * h_bar
        log_bar = state_bar * before
        write_bar = _sum_rows(h_bar * token.B[..., None])
        dt_bar = _sum_rows(log_bar * A_rows[None]) + token.x * write_bar
        B_bar = _contract(plan, h_bar, token.dt * token.x)
        A_bar = A_bar + jnp.sum(log_bar * token.dt[:, :, None], axis=0)
        return (state_bar, A_bar), (token.dt * write_bar, dt_bar, B_bar)

    def chunk(carry, group):
        state_bar, A_bar = carry
        tokens, y_bar, state = group
        after, before = jax.lax.scan(again, state, tokens)
        (state_bar, A_part), bars = jax.lax.scan(
            step,
            (state_bar, jnp.zeros_like(A_bar)),
            (tokens, y_bar, before),
            reverse=True,
        )
        h = jnp.concatenate([before[1:], after[None]])
        C_bar = _contract(plan, h, y_bar)
        return (state_bar, A_bar + A_part), (*bars, C_bar)

    carry = (to_rows(final_bar, groups), jnp.zeros_like(A_rows))
    carry = recurrence.match_varying(carry, recurrence.varying_axes(states))
    (initial_bar, A_bar), bars = jax.lax.scan(
        chunk, carry, (chunks, y_bars, states), reverse=True
    )
    x_bar, dt_bar = (_join(bar, x.shape) for bar in bars[:2])
    B_bar, C_bar = (_join(bar, B.shape) for bar in bars[2:])
    return (
        x_bar,
        dt_bar,
        of_rows(A_bar),
        B_bar,
        C_bar,
        None,
        of_rows(initial_bar),
    )


selective_chunk.defvjp(_forward, _backward)


# More rows than these are left to a reduction, which compiles faster.
_ROWS = 32


def _sum_rows(x):
    """Sums [..., N, R] over N."""
    if x.shape[-2] > _ROWS:
        return jnp.sum(x, axis=-2)
    # Written out it fuses with what makes x: forward and backward take 31 ms
    # on CPU for 2048 tokens of 256 x 16 states, and 50 with a reduction.
    rows = [x[..., n, :] for n in range(x.shape[-2])]
    return functools.reduce(jnp.add, rows)


def _contract(plan, state, channels):
    """[..., G, N, R] and [..., G, R] to [..., G, N]."""
    # A dot, since a plain sum over the last axis is not vectorised on CPU.
    return jnp.einsum(
        "...nr,...r->...n", state, channels, precision=plan.precision
    )


def to_rows(state, groups):
    """[..., D, N] to [..., G, N, R]."""
    *lead, channels, size = state.shape
    return state.reshape(*lead, groups, channels // groups, size).mT


def of_rows(rows):
    """[..., G, N, R] to [..., D, N]."""
    *lead, groups, size, repeat = rows.shape
    return rows.mT.reshape(*lead, groups * repeat, size)


def _split(plan, x, dt, B, C, starts):
    """Tokens with leading axes [chunks, C]."""
    groups = B.shape[2]
    return Tokens(
        _split_one(plan, x, groups),
        _split_one(plan, dt, groups),
        _split_one(plan, B),
        _split_one(plan, C),
        None if starts is None else _split_one(plan, starts),
    )


def _split_one(plan, x, groups=None):
    """[B, T, ...] to [chunks, C, B, ...], padded with tokens of 0.

    A padding token is the identity: no time passes, nothing is written.  With
    `groups` the last axis D becomes [G, R].
    """
    x = jnp.moveaxis(x, 1, 0)
    missing = -x.shape[0] % plan.chunk_size
    x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
    if groups is not None:
        x = x.reshape(*x.shape[:2], groups, -1)
    return x.reshape(-1, plan.chunk_size, *x.shape[1:])


def _join(x, shape):
    """[chunks, C, B, ...] to [B, T, ...] of the given shape."""
    x = jnp.moveaxis(x.reshape(-1, *x.shape[2:])[: shape[1]], 0, 1)
    return x.reshape(shape)
