"""The delta rule with a writing strength for every value channel.

    S_t = S_{t-1} + k_t (beta_t * (v_t - S_{t-1}^T k_t))^T     beta_t [V]

Each value channel has its own triangular system, so no inverse serves them all.
Rows are substituted one after the other, all channels at once, on the scores of
a chunk; the state is touched once a chunk.  Time O(T (C + K) V) a head, T steps
that depend on each other.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _delta_chunk
from seqjax.ops import _delta_parts

_EXACT = jax.lax.Precision.HIGHEST


def value_chunk(plan, inputs, starts, initial):
    """Chunk form; the backward pass keeps one state a chunk.

    Args:
      plan: `_delta_chunk.Plan`.
      inputs: as of `_delta_parts.scalar_parts`, beta [B, T, H, V] and no decay.
      starts: bool [B, T] or None.
      initial: [B, H, K, V].

    Returns:
      (y [B, T, H, V], state [B, H, K, V]).
    """
    length = inputs["q"].shape[1]
    plan = plan._replace(group=1)
    groups = _delta_chunk.split(plan, inputs, starts, length)

    @jax.checkpoint
    def step(state, group):
        inputs, starts = group
        return _one_chunk(
            plan, inputs, starts, state, _delta_parts.scalar_parts, solve
        )

    final, y = jax.lax.scan(step, initial, groups)
    return _delta_chunk.join(y, length), final


def value_parallel(plan, inputs, starts, initial):
    """All tokens as one chunk, differentiable twice in both modes."""
    plan = plan._replace(chunk_size=inputs["q"].shape[1], group=1)
    state, y = _one_chunk(
        plan,
        inputs,
        starts,
        initial,
        _delta_parts.dense_scalar_parts,
        _substitute,
    )
    return y, state


def _one_chunk(plan, inputs, starts, state, parts, solver):
    """(state behind the chunk, y [B, C, H, V])."""
    beta = inputs["beta"]
    ones = jnp.ones(beta.shape[:-1], plan.dtype)
    p, zeros = parts(plan, inputs | {"beta": ones}, starts)
    p = jax.tree.map(lambda x: x[0], p)
    zeros = None if zeros is None else zeros[0]
    beta = _delta_chunk.to_chunks(plan, beta, plan.chunk_size)[0]
    written = solver(beta, p.targets - _mm(p.recall, state), p.lower)
    y = _mm(p.queries, state) + _mm(p.scores, written)
    state = recurrence.Decay(p.log, zeros).act(state)
    return state + _mm(p.keys.mT, written), y.swapaxes(1, 2)


@jax.custom_vjp
def solve(beta, x, lower):
    """R with R_i = beta_i * (x_i - sum over j < i of L_ij R_j).

    Args:
      beta: [..., C, V].
      x: [..., C, V].
      lower: [..., C, C], strictly lower triangular.
    """
    return _substitute(beta, x, lower)


def _solve_forward(beta, x, lower):
    written = _substitute(beta, x, lower)
    return written, (beta, x, lower, written)


def _solve_backward(residual, bar):
    beta, x, lower, written = residual
    # The transposed system runs from the last row to the first.
    turn = functools.partial(jnp.flip, axis=-2)
    back = turn(jnp.flip(lower.mT, axis=-1))
    x_bar = turn(_substitute(turn(beta), turn(bar), back))
    beta_bar = (bar - _mm(lower.mT, x_bar)) * (x - _mm(lower, written))
    return beta_bar, x_bar, -_mm(x_bar, written.mT)


solve.defvjp(_solve_forward, _solve_backward)


def _substitute(beta, x, lower):
    def step(written, row):
        i, beta, x, lower = row
        known = jnp.einsum("...j,...jv->...v", lower, written, precision=_EXACT)
        new = beta * (x - known)
        return written.at[..., i, :].set(new), None

    rows = tuple(jnp.moveaxis(z, -2, 0) for z in (beta, x, lower))
    index = jnp.arange(x.shape[-2])
    written, _ = jax.lax.scan(step, jnp.zeros_like(x), (index, *rows))
    return written


def _mm(x, y):
    return jnp.matmul(x, y, precision=_EXACT)
