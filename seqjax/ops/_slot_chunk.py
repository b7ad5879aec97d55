"""Chunk form of gated slot attention, both of its halves at once.

Keys and values of the slots are one state [M, K + V] with one gate a slot.  In
a chunk of C tokens, with the decays D of `_channel_scores`,

    S_ij = scale q_i . k_j                      (i >= j)
    z_im = sum_j S_ij D_ij,m s_jm + head_im (scale q K)_im      w = softmax(z)
    A_ij = sum_m w_im D_ij,m s_jm               (i >= j)
    o    = A v + (w * head) V

so that what reads the first half, S with s, is what a cotangent of A does to
the second.  Backward, with dA = dO v^T and dw from dA as z comes from S,

    dz = w (dw - sum_m w dw)                    dS = scores of dz as A is of w

and (dA, S) beside each other are the cotangents of the scores of (w, dz): they
give those of s and of the gates, sums of dA * A terms as everywhere.

A `lax.scan` walks over groups of chunks; time O(T (C log C + K + V) M) a head.
Memory for the backward pass: the inputs, one state, w and A of each chunk,
((K + V) M / C + M + C) floats a token and head.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _channel_delta_layout as layout
from seqjax.ops import _channel_score_cotangents
from seqjax.ops import _channel_scores
from seqjax.ops import _delta_chunk
from seqjax.ops import _products

_mm, _tmm, _mmt = _products.mm, _products.tmm, _products.mmt
# Chunks times heads that a scan step holds.
_PRODUCTS = 32


class Chunks(NamedTuple):
    """A group of chunks, [n, B, H, C, ...], C a power of two."""

    q: jax.Array  # scaled
    k: jax.Array
    v: jax.Array
    s: jax.Array  # [..., 1, C, M]
    log: jax.Array  # [..., C, M], -inf where a document starts


def make_plan(v, *, chunk_size: int, scale, dtype, precision):
    """The plan for values [B, T, H, V]."""
    return _delta_chunk.make_plan(
        _chunks,
        v,
        chunk_size=chunk_size,
        products=_PRODUCTS,
        scale=scale,
        dtype=dtype,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def slot_chunk(plan: _delta_chunk.Plan, inputs, starts, initial):
    """Output [B,T,H,V] and final state [B,H,M,K+V].

    Args:
      plan: of `make_plan`.
      inputs: dict of q, k [B, T, G, K]; v [B, T, H, V]; s, log_decay
        [B, T, H, M].
      starts: bool [B, T], where a document starts, or None.
      initial: [B, H, M, K+V] in the accumulation dtype, keys then values.

    Returns:
      (o, state), both in the accumulation dtype.
    """
    return _forward(plan, inputs, starts, initial)[0]


def _forward(plan, inputs, starts, initial):
    length = inputs["q"].shape[1]
    groups = _delta_chunk.split(plan, inputs, starts, length)

    def step(state, group):
        c = plan.rule(plan, *group)
        p = _channel_scores.pairs(None, c.s, c.log)
        written = p.tail * c.s[..., 0, :, :]
        write = _tmm(written, _beside(c.k, c.v))
        before, after = recurrence.exclusive_prefix(
            recurrence.Affine(_total(c.log), write), state
        )
        keys, values = _apart(before, c)

        square = _mmt(c.q, c.k, plan)[..., None, :, None, :]
        inside = _channel_score_cotangents.read(
            p, square, precision=_products.EXACT
        )
        head_bar = _mmt(c.q, keys)[..., None, :, :]
        (logits,) = _channel_score_cotangents.x_cotangents(
            p, c.s, square, head_bar, inside, own_reads=1
        )
        w = jax.nn.softmax(logits, axis=-1)
        x = w[..., None, :, :]
        p = _channel_scores.with_reads(p, x)
        (scores,) = _channel_scores.scores(
            p, x, c.s, [[(0, 0)]], precision=_products.EXACT
        )
        o = _mm(scores, c.v, plan) + _mm(w * p.head, values)
        return after, (layout.to_tokens(plan, o), before, w, scores)

    final, (y, *kept) = jax.lax.scan(step, initial, groups)
    y = _delta_chunk.join(y, length)
    return (y, final), (inputs, starts, kept)


def _backward(plan, residual, cotangents):
    inputs, starts, kept = residual
    y_bar, final_bar = cotangents
    length = inputs["q"].shape[1]
    groups = _delta_chunk.split(plan, inputs, starts, length)
    y_bars = _delta_chunk.split(plan, y_bar, None, length)[0]

    def step(state_bar, group):
        (inputs, starts), o_bar, (before, w, scores) = group
        c, pull = jax.vjp(
            lambda inputs: plan.rule(plan, inputs, starts), inputs
        )
        o_bar = layout.to_chunks(plan, o_bar)
        p = _channel_scores.pairs(None, c.s, c.log)
        keys, values = _apart(before, c)

        # First the cotangent of the weights, then that of their logits.
        square = jnp.stack(
            [_mmt(o_bar, c.v, plan), _mmt(c.q, c.k, plan)], axis=-3
        )[..., None, :]
        head_bar = jnp.stack([_mmt(o_bar, values), _mmt(c.q, keys)], axis=-3)
        inside = _channel_score_cotangents.read(
            p, square, precision=_products.EXACT
        )
        w_bar, _ = _channel_score_cotangents.x_cotangents(
            p, c.s, square, head_bar, inside, own_reads=2
        )
        z_bar = w * (w_bar - jnp.sum(w * w_bar, axis=-1, keepdims=True))
        x = jnp.stack([w, z_bar], axis=-3)
        p = _channel_scores.with_reads(p, x)
        (square_bar,) = _channel_scores.scores(
            p, x, c.s, [[(1, 0)]], precision=_products.EXACT
        )

        total = _total(c.log)
        decayed = x * p.head[..., None, :, :]
        write_bar = _beside(
            _tmm(decayed[..., 1, :, :], c.q), _tmm(decayed[..., 0, :, :], o_bar)
        )
        after_bar, first_bar = recurrence.exclusive_prefix(
            recurrence.Affine(total, write_bar), state_bar, reverse=True
        )
        both_bar = _mm(p.tail * c.s[..., 0, :, :], after_bar)
        tail_bar = _mmt(_beside(c.k, c.v), after_bar)[..., None, :, :]
        carried = jnp.sum(total.act(before) * after_bar, axis=-1)
        s_bar, log_bar = _channel_score_cotangents.rest_of_cotangents(
            p,
            x,
            c.s,
            c.log,
            (square, head_bar, tail_bar, carried),
            inside,
            own_reads=2,
            precision=_products.EXACT,
        )
        k_bar, v_bar = jnp.split(both_bar, [c.k.shape[-1]], axis=-1)
        bars = Chunks(
            _mm(square_bar, c.k, plan) + _mm(decayed[..., 1, :, :], keys),
            k_bar + _tmm(square_bar, c.q, plan),
            v_bar + _tmm(scores, o_bar, plan),
            s_bar,
            log_bar,
        )
        return first_bar, pull(bars)[0]

    initial_bar, grads = jax.lax.scan(
        step, final_bar, (groups, y_bars, kept), reverse=True
    )
    bars = {
        name: _delta_chunk.join(grads[name], length).astype(x.dtype)
        for name, x in inputs.items()
    }
    return bars, None, initial_bar


slot_chunk.defvjp(_forward, _backward)


def _chunks(plan, inputs, starts) -> Chunks:
    x = layout.load(plan, inputs, starts)
    return Chunks(
        plan.scale * x["q"],
        x["k"],
        x["v"],
        x["s"][..., None, :, :],
        x["log_decay"],
    )


def _total(log):
    """Decay of whole chunks; a sum of gates <= 0 loses nothing that matters."""
    return recurrence.decay_of(jnp.sum(log, axis=-2))


def _beside(x, y):
    return jnp.concatenate([x, y], axis=-1)


def _apart(state, c):
    """[..., M, K+V] as keys [..., M, K] and values [..., M, V]."""
    return jnp.split(state, [c.k.shape[-1]], axis=-1)
