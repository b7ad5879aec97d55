"""Chunks of the delta rules with at most one gate a token and head.

With decays D_ij from behind token j through token i (see `_decays`):

    L_ij = beta_i D_ij a_i . k_j   (i > j)      Z_i = beta_i v_i
    P_ij = scale D_ij q_i . k_j    (i >= j)     A_i = beta_i head_i a_i

where a is the key that a token reads with, k itself in the delta rule.  A token
that reads before its decay takes D and head of the token before it.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.ops import _decays
from seqjax.ops import _delta_chunk


@jax.custom_vjp
def exact_sums(log: jax.Array, starts: jax.Array | None):
    """`_decays.two_float_sums`, with the gradient of `segment_sums`."""
    return _decays.two_float_sums(log, starts)


def _sums_forward(log, starts):
    return _decays.two_float_sums(log, starts), None


def _sums_backward(_, bars):
    return _decays.rectangle_sums(*bars), None


exact_sums.defvjp(_sums_forward, _sums_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def self_scores(precision, k: jax.Array) -> jax.Array:
    """k_i . k_j; the gradient of both sides in one product."""
    return _products(precision, k, k)


def _self_backward(precision, k, bar):
    both = bar + bar.mT
    return (jnp.einsum("...ij,...jk->...ik", both, k, precision=precision),)


self_scores.defvjp(
    lambda precision, k: (_products(precision, k, k), k), _self_backward
)


def _products(precision, x, y):
    return jnp.einsum("...ik,...jk->...ij", x, y, precision=precision)


def scalar_parts(
    plan,
    inputs,
    starts,
    *,
    sums: Callable = exact_sums,
    read_first: bool = False,
):
    """`Parts` of a group of chunks.

    Args:
      plan: `_delta_chunk.Plan`.
      inputs: q [B, n*Q, G, K]; k [B, n*C, G, K]; v [B, n*C, H, V]; beta
        [B, n*C, H]; log_decay [B, n*C, H] or None; read [B, n*C, G, K], the
        key to read with, or None for k.
      starts: bool [B, n*C] or None.
      sums: of gates between tokens.
      read_first: tokens read before their decay.

    Returns:
      (Parts, zeros [n, B, H] or None).
    """
    q, k, v, beta, log = (
        inputs[n] for n in ("q", "k", "v", "beta", "log_decay")
    )
    groups, size = k.shape[2], plan.chunk_size * plan.steps

    def of_groups(x, size=size):  # to [n, B, G, C, K]
        return _delta_chunk.to_chunks(plan, x, size)

    def of_heads(x):  # to [n, B, G, R, C, ...]
        x = _delta_chunk.to_chunks(plan, x, size)
        return x.reshape(*x.shape[:2], groups, -1, *x.shape[3:])

    q, k = plan.scale * of_groups(q, plan.chunk_size), of_groups(k)
    a = k if inputs["read"] is None else of_groups(inputs["read"])
    v, beta = of_heads(v), of_heads(beta)
    if log is not None:
        log = of_heads(log)
    if starts is not None:
        starts = starts.reshape(starts.shape[0], plan.group, 1, 1, size)
        starts = jnp.moveaxis(starts, 1, 0)
    log, zeros = _decays.finite_part(log, starts)
    decays = _decays.chunk_decays(
        log,
        zeros,
        shape=beta.shape,
        dtype=plan.dtype,
        sums=None if log is None else sums(log, starts),
    )
    pairs, head = decays.pairs, decays.head
    read_pairs, read_head = pairs, head
    if read_first:
        read_pairs = _token_before(pairs, starts, -2, 0.0)
        read_head = _token_before(head, starts, -1, 1.0)
    strictly = jnp.tri(size, k=-1, dtype=bool)
    strictly = strictly.reshape((1,) * (pairs.ndim - 2) + strictly.shape)

    reads: Any
    if a is k and sums is exact_sums:
        reads = self_scores(plan.precision, k)
    else:
        reads = _products(plan.precision, a, k)
    scores = _products(plan.precision, q, k)

    def of_keys(factor: jax.Array, x: jax.Array) -> jax.Array:
        """Factors [n,B,G,R,C] times [n,B,G,C,K]."""
        return factor[..., None] * x[:, :, :, None]

    last = slice(plan.steps - 1, None, plan.steps)  # the step that is read
    parts = _delta_chunk.Parts(
        lower=reads[:, :, :, None]
        * jnp.where(strictly, beta[..., None] * read_pairs, 0),
        scores=scores[:, :, :, None] * pairs[..., last, :],
        targets=beta[..., None] * v,
        recall=of_keys(beta * read_head, a),
        queries=of_keys(head[..., last], q),
        keys=of_keys(decays.tail, k),
        log=decays.total.log,
    )
    # [n, B, G, R, ...] to [n, B, H, ...]
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:]),
        (parts, decays.total.zeros),
    )


def _token_before(x, starts, axis, first):
    """Rows of the token before; nothing where a document starts."""
    rows = jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    rows = jnp.pad(rows, pad, constant_values=first)
    if starts is not None:
        cut = starts if axis == -1 else starts[..., None]
        rows = jnp.where(cut, 0, rows)
    return rows


def dense_scalar_parts(plan, inputs, starts):
    """`scalar_parts` that can be differentiated in both modes, twice."""
    return scalar_parts(plan, inputs, starts, sums=_plain_sums)


def scalar_parts_read_first(plan, inputs, starts):
    """`scalar_parts` of a rule that reads before it decays."""
    return scalar_parts(plan, inputs, starts, read_first=True)


def dense_scalar_parts_read_first(plan, inputs, starts):
    """The same, differentiable in both modes, twice."""
    return scalar_parts(plan, inputs, starts, sums=_plain_sums, read_first=True)


def _plain_sums(log, starts):
    del starts
    return _decays.segment_sums(log)
