"""Chunk form of the additive rule with at most one gate a token and head.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

In a chunk of C tokens with decays D_ij (see `_decays`), incoming state S:

    A   = (Q K^T) * D                           scores inside the chunk
    O   = scale [ head * (Q S) + A V ]
    S'  = decay S + K^T (tail * V)

A `lax.scan` walks over groups of chunks: the chunks of a group are one batch of
matrix products, large enough to fill the cores and small enough for their
caches, and `recurrence.exclusive_prefix` carries the state between them.
Time O(T (C + K) V), memory for the backward pass: the inputs, and one state a
chunk (K V / C floats a token and head).  The backward pass recomputes scores
and decays, and walks the same prefix in reverse over dS.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _chunk_layout as layout
from seqjax.ops import _contract
from seqjax.ops import _decays


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable)."""

    chunk_size: int
    group: int  # chunks a scan step works on
    scale: float
    dtype: jnp.dtype  # accumulation
    precision: jax.lax.Precision
    decay_gradient: bool  # False where the decays are constants of the operator


# Matrix products a scan step should hold: 128 was the fastest of 16 .. 256 on
# two cores with chunks of 64 and heads of 64 (see benchmarks.operators).
_PRODUCTS = 128


def make_plan(
    q, v, *, chunk_size: int, scale: float, dtype, precision, decay_gradient
) -> Plan:
    """Chooses the group of chunks for shapes q [B,T,G,K], v [B,T,H,V]."""
    batch, length, _, _ = q.shape
    chunk_size = min(chunk_size, _contract.round_up(max(length, 1), 16))
    chunks = math.ceil(length / chunk_size)
    target = max(1, _PRODUCTS // max(1, batch * v.shape[2]))
    steps = math.ceil(chunks / target)
    return Plan(
        chunk_size,
        math.ceil(chunks / steps),
        float(scale),
        dtype,
        precision,
        decay_gradient,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scalar_chunk(plan: Plan, q, k, v, log_decay, starts, initial):
    """Output [B,T,H,V] and final state [B,H,K,V] of the additive rule.

    Args:
      plan: static choices.
      q: [B, T, G, K]; value head h reads key head h // (H/G).
      k: [B, T, G, K].
      v: [B, T, H, V].
      log_decay: in the accumulation dtype, [B, T, H], or None, or [H] where
        nothing but T tokens, a multiple of the chunk, decays: then one set of
        decays serves every chunk.
      starts: bool [B, T], where a document starts, or None.
      initial: [B, H, K, V] in the accumulation dtype.

    Returns:
      (y, state), both in the accumulation dtype.
    """
    return _forward(plan, q, k, v, log_decay, starts, initial)[0]


def _forward(plan, q, k, v, log_decay, starts, initial):
    length = q.shape[1]
    heads = (q.shape[2], v.shape[2] // q.shape[2])
    inputs = _split(plan, q, k, v, log_decay, starts)
    constant = _constant_decays(plan, log_decay, heads)

    def step(state, group):
        q, k, v, decays = _load(plan, group, constant)
        write = _mm(
            plan, "nbgjk,nbgjrv->nbgkrv", k, layout.rows(decays.tail) * v
        )
        before, after = recurrence.exclusive_prefix(
            recurrence.Affine(layout.of_state(decays.total), write), state
        )
        scores = _mm(plan, "nbgik,nbgjk->nbgij", q, k)
        a = scores[:, :, :, None] * decays.pairs
        y = _mm(plan, "nbgrij,nbgjrv->nbgirv", a, v)
        read = _mm(plan, "nbgik,nbgkrv->nbgirv", q, before)
        y = plan.scale * (y + layout.rows(decays.head) * read)
        return after, (layout.to_tokens(y), before)

    final, (y, states) = jax.lax.scan(
        step, layout.heads(initial, heads), inputs
    )
    residual = (inputs, log_decay, states)
    return (layout.join(y, length), layout.unheads(final)), residual


def _backward(plan, residual, cotangents):
    inputs, log_decay, states = residual
    y_bar, final_bar = cotangents
    length = y_bar.shape[1]
    heads = (inputs[2].shape[3], inputs[2].shape[5])
    y_bars = layout.split_values(plan, y_bar, heads[0])
    constant = _constant_decays(plan, log_decay, heads)

    def step(state_bar, group):
        inputs, y_bar, before = group
        q, k, v, decays = _load(plan, inputs, constant)
        y_bar = plan.scale * y_bar
        total = layout.of_state(decays.total)

        # dS: every chunk maps the cotangent behind it to the one before it.
        y_bar_head = layout.rows(decays.head) * y_bar
        write_bar = _mm(plan, "nbgik,nbgirv->nbgkrv", q, y_bar_head)
        after_bar, first_bar = recurrence.exclusive_prefix(
            recurrence.Affine(total, write_bar), state_bar, reverse=True
        )

        # What leads out of the chunk comes first, and only then, behind the
        # barrier, the pairs inside it.  XLA would keep the arrays of both, and
        # malloc maps scratch above 32 MiB anew each time: twice the time.
        tail = layout.rows(decays.tail)
        q_read = _mm(plan, "nbgirv,nbgkrv->nbgrik", y_bar_head, before)
        q_out = jnp.sum(q_read, axis=3)
        k_out = _mm(plan, "nbgjrv,nbgkrv->nbgjk", tail * v, after_bar)
        v_out = tail * _mm(plan, "nbgjk,nbgkrv->nbgjrv", k, after_bar)
        gates = None
        if log_decay is not None and plan.decay_gradient:
            leaving = jnp.swapaxes(jnp.sum(v_out * v, axis=-1), -1, -2)
            head_bar = jnp.sum(q_read * q[:, :, :, None], axis=-1)
            carried = jnp.sum(total.act(before) * after_bar, axis=(-1, -3))
            gates = leaving, head_bar.at[..., -1].add(carried)
            y_bar, gates = jax.lax.optimization_barrier((y_bar, gates))

        scores = _mm(plan, "nbgik,nbgjk->nbgij", q, k)[:, :, :, None]
        a = scores * decays.pairs
        v_bar = v_out + _mm(plan, "nbgrij,nbgirv->nbgjrv", a, y_bar)
        a_bar = _mm(plan, "nbgirv,nbgjrv->nbgrij", y_bar, v)
        b = a_bar * decays.pairs  # dA * D
        b_all = jnp.sum(b, axis=3)
        q_bar = q_out + _mm(plan, "nbgij,nbgjk->nbgik", b_all, k)
        k_bar = k_out + _mm(plan, "nbgij,nbgik->nbgjk", b_all, q)
        out = (
            layout.to_tokens(q_bar[..., None, :]),
            layout.to_tokens(k_bar[..., None, :]),
            layout.to_tokens(v_bar),
        )
        if gates is None:
            return first_bar, (*out, None)

        # Gate gradient: dL_ij over pairs inside the chunk, then the rows and
        # columns that lead out of it, all of them sums of dA * A terms.
        leaving, head_bar = gates
        pair_bar = (b * scores).at[..., -1, :].add(leaving)
        if constant is not None:
            return first_bar, (*out, _sum_chunks((pair_bar, head_bar)))
        log_bar = _decays.rectangle_sums(pair_bar, head_bar)
        log_bar = jnp.swapaxes(log_bar, -1, -2)[..., None]
        return first_bar, (*out, layout.to_tokens(log_bar)[..., 0])

    initial_bar, grads = jax.lax.scan(
        step,
        layout.heads(final_bar, heads),
        (inputs, y_bars, states),
        reverse=True,
    )
    *grads, log_bar = grads
    grads = [layout.join(g, length) for g in grads]
    if log_bar is None:
        # Nothing to differentiate: no decay, or a constant one.
        log_bar = None if log_decay is None else jnp.zeros_like(log_decay)
    elif constant is not None:
        bars = jax.tree.map(lambda x: jnp.sum(x, axis=0), log_bar)
        log_bar = jnp.sum(_decays.rectangle_sums(*bars), axis=-1).reshape(-1)
    else:
        log_bar = layout.join(log_bar, length)
    if log_bar is not None and log_decay is not None:
        # A gate of -inf stays where it is: its gradient is 0.
        log_bar = jnp.where(recurrence.vanishes(log_decay), 0, log_bar)
    return (
        *(g.astype(x.dtype) for g, x in zip(grads, inputs[:3], strict=True)),
        log_bar,
        None,
        layout.unheads(initial_bar),
    )


scalar_chunk.defvjp(_forward, _backward)


def _mm(plan, subscripts, x, y):
    """einsum, in which an axis "r" of size 1 takes no part.

    Between the others it would keep XLA from folding transpositions into the
    products: each would be a copy, a quarter of the time in all.
    """
    *inputs, output = subscripts.replace("->", ",").split(",")
    pairs = tuple(zip((x, y), inputs, strict=True))
    alone = any(a.shape[i.index("r")] == 1 for a, i in pairs if "r" in i)
    if alone:
        x, y = (
            jnp.squeeze(a, i.index("r")) if "r" in i else a for a, i in pairs
        )
        subscripts = subscripts.replace("r", "")
    out = jnp.einsum(
        subscripts,
        x,
        y,
        precision=plan.precision,
        preferred_element_type=plan.dtype,
    )
    if alone and "r" in output:
        out = jnp.expand_dims(out, output.index("r"))
    return out


def _split(plan, q, k, v, log_decay, starts):
    """Inputs in the order in which the scan and its products read them.

    They are also the residuals: one transposition serves both directions.
    """
    groups = q.shape[2]
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = None  # see _constant_decays
    return (
        layout.split_keys(plan, q),
        layout.split_keys(plan, k),
        layout.split_values(plan, v, groups),
        None
        if log_decay is None
        else layout.split_gates(plan, log_decay, groups),
        None
        if starts is None
        else layout.split_gates(plan, starts[..., None], 1),
    )


def _constant_decays(plan, log_decay, heads):
    """Decays [1,1,G,R,C,..] of every chunk, where the gates are [H]."""
    if log_decay is None or log_decay.ndim > 1:
        return None
    shape = (1, 1, *heads, plan.chunk_size)
    log_decay = jnp.broadcast_to(log_decay.reshape(*shape[:-1], 1), shape)
    log, zeros = _decays.finite_part(log_decay, None)
    assert log is not None
    sums = _decays.two_float_sums(log, None)
    decays = _decays.chunk_decays(
        log, zeros, shape=shape, dtype=plan.dtype, sums=sums
    )
    total = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (plan.group, *x.shape[1:])), decays.total
    )
    return decays._replace(total=total)


def _sum_chunks(tree):
    """Sums [n, B, ...] over chunks and rows."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), tree)


def _load(plan, group, constant):
    """One step's q, k [n,B,G,C,K], v [n,B,G,C,R,V], and its decays."""
    *tokens, log_decay, starts = group
    q, k, v = (x.astype(plan.dtype) for x in tokens)
    if constant is not None:
        return q, k, v, constant
    log, zeros = _decays.finite_part(log_decay, starts)
    sums = None if log is None else _decays.two_float_sums(log, starts)
    n, batch, groups, size, repeat, _ = v.shape
    decays = _decays.chunk_decays(
        log,
        zeros,
        shape=(n, batch, groups, repeat, size),
        dtype=plan.dtype,
        sums=sums,
    )
    return q, k, v, decays
