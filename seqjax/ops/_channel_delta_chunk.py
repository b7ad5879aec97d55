"""Chunk form of the rules that erase before they write, with channel gates.

KDA, Gated DeltaNet 2 and DPLR in one: two vectors a token read, q for the
output and a for what is written; the keys b take what was read, and in DPLR the
keys k take v as well.  With scores and decayed vectors of `_channel_scores`,

    (I - A_ab) R = Z + A~ S              solved with X = (I - A_ab)^-1
    O   = Q~ S + A_qb R (+ A_qk V)
    S'  = decay S + B~^T R (+ K~^T V)

where Z is given, or A_ak V.  In DPLR the read of a token comes before its own
decay, so it is a read behind the token before, and rows of A_ab, A_ak and A~
move one token on.  `_delta_chunk` is the same for at most one gate a head; here
the vectors of a kind stand beside each other, so that there is one product
where it has two or four.

A `lax.scan` walks over groups of chunks; time O(T (C log C + K) (C + K + V)) a
head.  Memory for the backward pass: the inputs, one state, one X and the scores
that it reads again a chunk, (K V / C + 2 C) floats a token and head, with k and
v (K V / C + 4 C).  With G the cotangent behind the chunk,

    dR = A_qb^T dO + B~ G       dZ = X^T dR        dA~ = dZ S^T
    dS = Q~^T dO + (X A~)^T A_qb^T dO + M^T G      M = decay + B~^T X A~

and the cotangents of all scores are one product, [dO, dZ] times [R, V].
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import recurrence
from seqjax.ops import _channel_delta_layout as layout
from seqjax.ops import _channel_score_cotangents
from seqjax.ops import _channel_scores
from seqjax.ops import _delta_chunk
from seqjax.ops import _products
from seqjax.ops import _triangular

_mm, _tmm, _mmt = _products.mm, _products.tmm, _products.mmt


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk(plan: _delta_chunk.Plan, inputs, starts, initial):
    """Output [B,T,H,V] and final state [B,H,K,V] of a rule.

    Args:
      plan: static choices; its rule makes `layout.Chunks`.
      inputs: dict of float arrays [B, T, ...] as the rule knows them.
      starts: bool [B, T], where a document starts, or None.
      initial: [B, H, K, V] in the accumulation dtype.

    Returns:
      (y, state), both in the accumulation dtype.
    """
    return _forward(plan, inputs, starts, initial)[0]


def _forward(plan, inputs, starts, initial):
    length = inputs["q"].shape[1]
    groups = _delta_chunk.split(plan, inputs, starts, length)

    def step(state, group):
        c = plan.rule(plan, *group)
        p = _channel_scores.pairs(c.x, c.y, c.log)
        wanted = [[(0, 0)], [(1, 0)], [(0, 1), (1, 1)]][: c.y.shape[-3] + 1]
        scores = _channel_scores.scores(
            p, c.x, c.y, wanted, precision=plan.precision
        )
        queries, recall = _reads(p, c)
        keys = c.y * p.tail[..., None, :, :]
        known, targets = _known(plan, scores[2:], c)
        x = _triangular.inverse_of_unit_lower(-_later(scores[1], c))
        width = c.v.shape[-1]
        solved = _mm(x, jnp.concatenate([targets, recall], axis=-1))
        moved = _tmm(keys[..., 0, :, :], solved)
        write = moved[..., :width]
        if known is not None:
            write = write + _tmm(keys[..., 1, :, :], c.v, plan)
        before, after = recurrence.exclusive_prefix(
            recurrence.Affine(_maps(p, moved[..., width:]), write), state
        )
        written = solved[..., :width] + _mm(solved[..., width:], before)
        o = _mm(queries, before, plan) + _mm(scores[0], written, plan)
        if known is not None:
            o += known
        del scores[1]
        return after, (layout.to_tokens(plan, o), before, x, scores)

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
        (inputs, starts), o_bar, (before, x, scores) = group
        c, pull = jax.vjp(
            lambda inputs: plan.rule(plan, inputs, starts), inputs
        )
        o_bar = layout.to_chunks(plan, o_bar)
        p = _channel_scores.pairs(c.x, c.y, c.log)
        queries, recall = _reads(p, c)
        keys = c.y * p.tail[..., None, :, :]
        known, targets = _known(plan, scores[1:], c)

        read_bar = _tmm(scores[0], o_bar, plan)
        recalled = _mm(x, recall)
        # Transposed as it is made; a product with a transpose costs more.
        maps = _maps(p, _tmm(recalled, keys[..., 0, :, :]))
        before_bar = _tmm(queries, o_bar, plan) + _tmm(recalled, read_bar)
        after_bar, first_bar = recurrence.exclusive_prefix(
            recurrence.Affine(maps, before_bar),
            state_bar,
            reverse=True,
        )
        written = _mm(x, targets + _mm(recall, before))
        solved_bar = _tmm(x, read_bar + _mm(keys[..., 0, :, :], after_bar))

        # Everything that reads, and everything that is written, as one.
        bars = _rows(o_bar, _earlier(solved_bar, c))
        values = written if known is None else _rows(written, c.v)
        size, reads, writes = c.x.shape[-2], c.x.shape[-3], c.y.shape[-3]
        scores_bar = _mmt(bars, values, plan)
        carried = p.total * jnp.sum(before * after_bar, axis=-1)
        x_bar, y_bar, log_bar = _channel_score_cotangents.scores_cotangents(
            p,
            c.x,
            c.y,
            c.log,
            (
                scores_bar.reshape(
                    *scores_bar.shape[:-2], reads, size, writes, size
                ),
                _mmt(bars, before).reshape(c.x.shape),
                _mmt(values, after_bar).reshape(c.y.shape),
                carried,
            ),
            own_reads=1 if c.first is None else reads,
            precision=plan.precision,
        )
        v_bar = solved_bar
        if known is not None:
            v_bar = _tmm(scores[1], bars, plan)
            v_bar += _mm(keys[..., 1, :, :], after_bar, plan)
        row_bar: Any = None
        cuts_bar: Any = None
        if c.first is not None:
            row_bar = jnp.einsum(
                "...v,...kv->...k",
                _cut(solved_bar, c)[..., 0, :],
                before,
                precision=_products.EXACT,
            )
        if c.starts is not None:
            cuts_bar = np.zeros(c.starts.shape, jax.dtypes.float0)
        bars = layout.Chunks(x_bar, y_bar, v_bar, log_bar, row_bar, cuts_bar)
        return first_bar, pull(bars)[0]

    initial_bar, grads = jax.lax.scan(
        step, final_bar, (groups, y_bars, kept), reverse=True
    )
    bars = {
        name: None
        if x is None
        else _delta_chunk.join(grads[name], x.shape[1]).astype(x.dtype)
        for name, x in inputs.items()
    }
    return bars, None, initial_bar


chunk.defvjp(_forward, _backward)


def _reads(p, c):
    """Q~ and A~."""
    decayed = c.x * p.head[..., None, :, :]
    return decayed[..., 0, :, :], _later(decayed[..., 1, :, :], c, c.first)


def _known(plan, scores, c):
    """(A_qk V or None, Z)."""
    if not scores:
        return None, c.v
    both = _mm(scores[0], c.v, plan)
    size = c.v.shape[-2]
    return both[..., :size, :], _later(both[..., size:, :], c)


def _maps(p, moved):
    """The transition of each chunk."""
    one = jnp.eye(moved.shape[-1], dtype=moved.dtype)
    one = one.reshape((1,) * (moved.ndim - 2) + one.shape)
    return recurrence.Dense(p.total[..., None] * one + moved)


def _later(rows, c, first=None):
    """Rows one token on, nothing where a document starts."""
    if c.first is None:
        return rows
    first = jnp.zeros_like(rows[..., 0, :]) if first is None else first
    return _cut(
        jnp.concatenate([first[..., None, :], rows[..., :-1, :]], axis=-2), c
    )


def _earlier(rows, c):
    """The transpose of `_later` without a first row."""
    if c.first is None:
        return rows
    rows = _cut(rows, c)
    empty = jnp.zeros_like(rows[..., :1, :])
    return jnp.concatenate([rows[..., 1:, :], empty], axis=-2)


def _cut(rows, c):
    return rows if c.starts is None else jnp.where(c.starts, 0, rows)


def _rows(x, y):
    return jnp.concatenate([x, y], axis=-2)
