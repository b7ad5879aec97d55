"""Chunk form of softmax attention: online softmax over blocks of keys.

Dao, "FlashAttention-2" (2023), arXiv:2307.08691.  For a block of C queries, the
blocks of keys it can see are visited in order with a running maximum m, sum l
and weighted values a:

    S  = Q K_j^T + decay,  m' = max(m, rowmax S),  P = exp(S - m')
    l  = exp(m - m') l + rowsum P,   a = exp(m - m') a + P V_j

and the backward pass recomputes P = exp(S - L) from L = m + log l:

    dV_j += P^T dO,  dS = P * (dO V_j^T - rowsum(dO * O))
    dQ += dS K_j,    dK_j += dS^T Q

Time O(T^2 (K + V)) or O(T w (K + V)) with a window of w; memory for the
backward pass: inputs, output and L.  Blocks that no query of the block sees
(the future, beyond the window, other documents, empty cache) are not visited;
which ones is read from the data, and skipping one changes no bit.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _softmax_blocks


class Plan(NamedTuple):
    """Static choices of the chunk form (hashable)."""

    block: int  # C, tokens a block of queries and of keys
    cached: int  # leading keys that come from the cache, a multiple of C
    scale: float
    dtype: jnp.dtype  # accumulation
    precision: jax.lax.Precision


class Gate(NamedTuple):
    """Forget gate in the chunk form.

    Attributes:
      log: [B, T, H], finite; only its cotangent is used.
      cached: [B, plan.cached, H], decay from each cached key to the end of the
        cache, finite; only its cotangent is used.
      query: pair (high, low) of cumulative sums at the queries, [B, T, H].
      key: the same at the keys, [B, L, H]; the decay of a pair is
        query_i - key_j.
    """

    log: jax.Array
    cached: jax.Array
    query: tuple[jax.Array | None, ...]
    key: tuple[jax.Array | None, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk_attention(plan: Plan, q, k, v, sink, gate, bands):
    """Softmax attention [B, T, H, V] in the accumulation dtype.

    Args:
      plan: static choices.
      q: [B, T, H, K].
      k: [B, L, Hk, K], plan.cached cached keys and then the T new ones.
      v: [B, L, Hk, V].
      sink: [H] or None.
      gate: `Gate` or None.
      bands: `_softmax_bands.Bands`: which keys each query sees.

    Returns:
      y; differentiable once, in reverse mode.
    """
    return _forward(plan, q, k, v, sink, gate, bands)[0]


def _forward(plan, q, k, v, sink, gate, bands):
    blocks = _softmax_blocks.split(plan, q, k, v, gate, bands)
    batch, length, heads, _ = q.shape
    shape = blocks.q.shape[1:-1]  # [B, Hk, G, C]
    like = (q, k, v, sink, gate, bands)
    if sink is None:
        first = (
            jnp.full(shape, -jnp.inf, plan.dtype),
            jnp.zeros(shape, plan.dtype),
        )
    else:
        first = _sink(sink, shape, plan), jnp.ones(shape, plan.dtype)
    first = (*first, jnp.zeros((*shape, v.shape[-1]), plan.dtype))
    first = _contract.align_inputs({"x": first, "like": like}, None)["x"]

    def rows(_, row):
        def visit(j, carry):
            m, l, a = carry
            column = _softmax_blocks.column(blocks, j)
            s = _logits(plan, row, column)
            m_new = jnp.maximum(m, jnp.max(s, axis=-1))
            # A row that has seen nothing yet keeps m = -inf; exp(-inf - 0) = 0.
            base = jnp.where(jnp.isneginf(m_new), 0, m_new)
            p = jnp.exp(s - base[..., None])
            shrink = jnp.exp(m - base)
            l = shrink * l + jnp.sum(p, axis=-1)
            pv = _mm(plan, "bhgij,bhjv->bhgiv", p, column.v)
            return m_new, l, shrink[..., None] * a + pv

        start, stop = _softmax_blocks.visible(row, blocks)
        m, l, a = jax.lax.fori_loop(start, stop, visit, first)
        seen = l > 0
        l = jnp.where(seen, l, 1)
        lse = jnp.where(seen, m, 0) + jnp.log(l)
        return None, (a / l[..., None], lse)

    _, (out, lse) = jax.lax.scan(rows, None, blocks.rows)
    y = _softmax_blocks.unblock(out, batch, length, heads)
    return y, (q, k, v, sink, gate, bands, y, lse)


def _backward(plan, residual, y_bar):
    q, k, v, sink, gate, bands, y, lse = residual
    blocks = _softmax_blocks.split(plan, q, k, v, gate, bands)
    batch, length, heads, _ = q.shape
    groups = k.shape[2]
    out_bar = _softmax_blocks.block(plan, y_bar, groups)
    inner = jnp.sum(y_bar * y, axis=-1)  # dO . O
    inner = _softmax_blocks.block(plan, inner[..., None], groups)[..., 0]
    size = plan.block
    row_shape = blocks.q.shape[1:-1]
    zeros = {
        "q": jnp.zeros_like(blocks.q[0]),
        "k": jnp.zeros_like(blocks.k),
        "v": jnp.zeros_like(blocks.v),
        "gate": None,
        "cached": None,
        "sums": None,
    }
    if gate is not None:
        keys = (blocks.k.shape[0], *row_shape[:-1], size)
        zeros["gate"] = jnp.zeros(keys, plan.dtype)
        zeros["cached"] = jnp.zeros(keys, plan.dtype)
        zeros["sums"] = jnp.zeros(row_shape, plan.dtype)
    zeros = _contract.align_inputs({"x": zeros, "like": residual}, None)["x"]
    per_row = ("q", "sums")

    def rows(bars, row):
        index, row, out_bar, inner, lse = row
        diagonal = plan.cached // size + index

        def visit(j, bars):
            column = _softmax_blocks.column(blocks, j)
            p = jnp.exp(_logits(plan, row, column) - lse[..., None])
            p_bar = _mm(plan, "bhgiv,bhjv->bhgij", out_bar, column.v)
            s_bar = p * (p_bar - inner[..., None])
            if sink is None:
                # One key has weight 1 whatever its logit; without this,
                # rounding leaves a trace of it.
                alone = row.first == row.last
                s_bar = jnp.where(alone[..., None], 0, s_bar)
            bars = dict(bars)
            bars["q"] += _mm(plan, "bhgij,bhjk->bhgik", s_bar, column.k)
            bars["k"] = (
                bars["k"]
                .at[j]
                .add(_mm(plan, "bhgij,bhgik->bhjk", s_bar, row.q))
            )
            bars["v"] = (
                bars["v"].at[j].add(_mm(plan, "bhgij,bhgiv->bhjv", p, out_bar))
            )
            if gate is not None:
                sums = bars["sums"]
                columns = jnp.sum(s_bar, axis=-2)
                rectangle = jax.lax.cond(
                    j == diagonal,
                    _rectangle_diagonal,
                    _rectangle_before,
                    s_bar,
                    sums,
                    columns,
                )
                bars["gate"] = bars["gate"].at[j].add(rectangle)
                bars["cached"] = bars["cached"].at[j].add(columns)
                bars["sums"] = sums + jnp.sum(s_bar, axis=-1)
            return bars

        start, stop = _softmax_blocks.visible(row, blocks)
        bars = bars | {name: zeros[name] for name in per_row}
        bars = jax.lax.fori_loop(start, stop, visit, bars)
        q_bar = bars["q"]
        return bars | {name: zeros[name] for name in per_row}, q_bar

    index = jnp.arange(blocks.q.shape[0])
    xs = (index, blocks.rows, out_bar, inner, lse)
    bars, q_bar = jax.lax.scan(rows, zeros, xs)

    q_bar = plan.scale * _softmax_blocks.unblock(q_bar, batch, length, heads)
    k_bar = _softmax_blocks.unblock(
        bars["k"][:, :, :, None], batch, k.shape[1], groups
    )
    v_bar = _softmax_blocks.unblock(
        bars["v"][:, :, :, None], batch, k.shape[1], groups
    )
    sink_bar = gate_bar = None
    if sink is not None:
        # A row that sees nothing, not even a sink, has no weight.
        seen = lse > -jnp.inf
        logit = _sink(sink, row_shape, plan)[None] - jnp.where(seen, lse, 0)
        weight = jnp.where(seen, jnp.exp(jnp.where(seen, logit, 0)), 0)
        sink_bar = -jnp.sum(weight * inner, axis=(0, 1, 4)).reshape(heads)
        sink_bar = sink_bar.astype(sink.dtype)
    if gate is not None:
        log_bar, cached_bar = (
            _softmax_blocks.unblock(
                bars[name][..., None], batch, k.shape[1], heads
            )[..., 0]
            for name in ("gate", "cached")
        )
        gate_bar = Gate(
            log_bar[:, plan.cached :],
            cached_bar[:, : plan.cached],
            (None, None),
            (None, None),
        )
    return (
        q_bar.astype(q.dtype),
        k_bar.astype(k.dtype),
        v_bar.astype(v.dtype),
        sink_bar,
        gate_bar,
        None,
    )


chunk_attention.defvjp(_forward, _backward)


# The cotangent of gate l is the sum of dS_ij over i >= l > j.  Key blocks are
# visited in order; `sums` holds for each query the sum of dS over the blocks
# before this one, all of whose keys lie before every l of this block.


def _rectangle_before(s_bar, sums, columns):
    """All queries of the block come after all its keys."""
    del s_bar
    before = jnp.cumsum(columns[..., :-1], axis=-1)
    before = jnp.pad(before, ((0, 0),) * 3 + ((1, 0),))
    return before + jnp.sum(sums, axis=-1, keepdims=True)


def _rectangle_diagonal(s_bar, sums, columns):
    """Queries and keys are the same tokens: i >= l > j inside the block."""
    del columns
    size = s_bar.shape[-1]
    from_l = jnp.triu(jnp.ones((size, size), s_bar.dtype))  # [l, i]: i >= l
    after = jnp.tril(jnp.ones((size, size), bool), -1)  # [l, j]: j < l
    suffix = jnp.einsum(
        "li,bhgij->bhglj", from_l, s_bar, precision=jax.lax.Precision.HIGHEST
    )
    inside = jnp.sum(jnp.where(after[None, None, None], suffix, 0), axis=-1)
    return inside + jax.lax.cumsum(sums, axis=3, reverse=True)


def _logits(plan, row, column):
    """S [B, Hk, G, C, C], -inf where the key is not seen."""
    s = _mm(plan, "bhgik,bhjk->bhgij", row.q, column.k)
    if row.sums is not None:
        high, low = (
            i[..., :, None] - j[..., None, :]
            for i, j in zip(row.sums, column.sums, strict=True)
        )
        s += high + low
    rank = column.rank[..., None, :]
    seen = (row.first[..., None] <= rank) & (rank <= row.last[..., None])
    return jnp.where(seen, s, -jnp.inf)


def _mm(plan, subscripts, x, y):
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=plan.precision,
        preferred_element_type=plan.dtype,
    )


def _sink(sink, shape, plan):
    """[H] to [B, Hk, G, C]."""
    sink = sink.astype(plan.dtype).reshape(1, *shape[1:3], 1)
    return jnp.broadcast_to(sink, shape)
