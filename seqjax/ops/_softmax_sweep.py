"""One sweep of query blocks over key blocks: online softmax and its derivative.

Dao, "FlashAttention-2" (2023), arXiv:2307.08691.  For a block of C queries, the
blocks of keys it can see are visited in order with a running maximum m, sum l
and weighted values a:

    S  = Q K_j^T + decay,  m' = max(m, rowmax S),  P = exp(S - m')
    l  = exp(m - m') l + rowsum P,   a = exp(m - m') a + P V_j

and the backward pass recomputes P = exp(S - L) from L = m + log l:

    dV_j += P^T dO,  dS = P * (dO V_j^T - rowsum(dO * O))
    dQ += dS K_j,    dK_j += dS^T Q

(m, l, a) go from one set of keys to the next, so the keys of a call may come in
parts, and the parts from other devices.  Blocks that no query of the block sees
(the future, beyond the window, other documents, empty cache) are not visited;
which ones is read from the data, and skipping one changes no bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _softmax_blocks


class Carry(NamedTuple):
    """Softmax over the keys seen so far.

    Attributes:
      top: [n, B, Hk, G, C], m.
      total: [n, B, Hk, G, C], l.
      sums: [n, B, Hk, G, C, V], a.
    """

    top: jax.Array
    total: jax.Array
    sums: jax.Array


class Outer(NamedTuple):
    """What the backward pass knows of each query block, all [n, B, Hk, G, C].

    Attributes:
      out_bar: [..., V], cotangent of the output.
      inner: out_bar . output.
      lse: L.
    """

    out_bar: jax.Array
    inner: jax.Array
    lse: jax.Array


class Bars(NamedTuple):
    """Cotangents of a sweep.

    Attributes:
      q: [n, B, Hk, G, C, K], of the scaled queries.
      k: [m, B, Hk, C, K].
      v: [m, B, Hk, C, V].
      gate: [m, B, Hk, G, C] or None; of the gates of the keys' own tokens, for
        pairs of a key of this sweep before the gate and a query not before it.
      columns: [m, B, Hk, G, C] or None; sums of dS over queries.
      rows: [n, B, Hk, G, C] or None; sums of dS over keys.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    gate: jax.Array | None
    columns: jax.Array | None
    rows: jax.Array | None


def start(plan, sink, shape, width: int, like) -> Carry:
    """The carry of one query block [B, Hk, G, C] before any key.

    Args:
      plan: static choices.
      sink: [H] or None.
      shape: (B, Hk, G, C).
      width: V.
      like: arrays whose varying mesh axes the carry takes on.
    """
    if sink is None:
        first = (
            jnp.full(shape, -jnp.inf, plan.dtype),
            jnp.zeros(shape, plan.dtype),
        )
    else:
        first = sink_logits(sink, shape, plan), jnp.ones(shape, plan.dtype)
    first = Carry(*first, jnp.zeros((*shape, width), plan.dtype))
    return varying_like(first, like)


def varying_like(tree: Any, like: Any) -> Any:
    """`tree`, varying over the mesh axes of `like` too."""
    return _contract.align_inputs({"x": tree, "like": like}, None)["x"]


def forward(plan, rows, keys, carry: Carry, *, shared: bool = False) -> Carry:
    """Sweeps all query blocks over a set of keys.

    Args:
      plan: static choices.
      rows: `_softmax_blocks.Rows`.
      keys: `_softmax_blocks.Keys`.
      carry: of all query blocks; of one, which holds for all, if `shared`.
      shared: see there.

    Returns:
      `Carry` of all query blocks.
    """

    def one(_, xs):
        row, carry = xs if not shared else (xs, first)

        def visit(j, carry):
            m, l, a = carry
            column = keys.column(j)
            s = _logits(plan, row, column)
            m_new = jnp.maximum(m, jnp.max(s, axis=-1))
            # A row that has seen nothing yet keeps m = -inf; exp(-inf - 0) = 0.
            base = jnp.where(jnp.isneginf(m_new), 0, m_new)
            p = jnp.exp(s - base[..., None])
            shrink = jnp.exp(m - base)
            l = shrink * l + jnp.sum(p, axis=-1)
            pv = _mm(plan, "bhgij,bhjv->bhgiv", p, column.v)
            return Carry(m_new, l, shrink[..., None] * a + pv)

        begin, end = _softmax_blocks.visible(row, keys)
        return None, jax.lax.fori_loop(begin, end, visit, carry)

    first = carry
    return jax.lax.scan(one, None, rows if shared else (rows, carry))[1]


def finish(carry: Carry) -> tuple[jax.Array, jax.Array]:
    """Output blocks [n, B, Hk, G, C, V] and L [n, B, Hk, G, C]."""
    m, l, a = carry
    seen = l > 0
    l = jnp.where(seen, l, 1)
    lse = jnp.where(seen, m, 0) + jnp.log(l)
    return a / l[..., None], lse


def backward(
    plan,
    rows,
    outer: Outer,
    keys,
    *,
    diagonal: int | None,
    sink: bool,
) -> Bars:
    """The derivative of a sweep.

    Args:
      plan: static choices.
      rows: `_softmax_blocks.Rows`; sums of gates in it ask for theirs.
      outer: of the query blocks.
      keys: `_softmax_blocks.Keys`.
      diagonal: the key block that holds the tokens of the first query block;
        those of the others follow it.  None: the queries' own are not here.
      sink: whether there is one.

    Returns:
      `Bars`.
    """
    gated = rows.sums is not None
    row_shape = rows.q.shape[1:-1]
    zeros = {
        "k": jnp.zeros_like(keys.columns.k),
        "v": jnp.zeros_like(keys.columns.v),
        "gate": None,
        "columns": None,
    }
    per_row = {"q": jnp.zeros_like(rows.q[0]), "rows": None}
    if gated:
        shape = (keys.columns.k.shape[0], *row_shape[:-1], plan.block)
        zeros["gate"] = jnp.zeros(shape, plan.dtype)
        zeros["columns"] = jnp.zeros(shape, plan.dtype)
        per_row["rows"] = jnp.zeros(row_shape, plan.dtype)
    zeros, per_row = varying_like((zeros, per_row), (rows, outer, keys))

    def one(bars, row):
        index, row, outer = row
        own = -1 if diagonal is None else diagonal + index

        def visit(j, bars):
            column = keys.column(j)
            p = jnp.exp(_logits(plan, row, column) - outer.lse[..., None])
            p_bar = _mm(plan, "bhgiv,bhjv->bhgij", outer.out_bar, column.v)
            s_bar = p * (p_bar - outer.inner[..., None])
            if not sink:
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
                bars["v"]
                .at[j]
                .add(_mm(plan, "bhgij,bhgiv->bhjv", p, outer.out_bar))
            )
            if gated:
                sums = bars["rows"]
                columns = jnp.sum(s_bar, axis=-2)
                if diagonal is None:
                    rectangle = _rectangle_before(s_bar, sums, columns)
                else:
                    rectangle = jax.lax.cond(
                        j == own,
                        _rectangle_diagonal,
                        _rectangle_before,
                        s_bar,
                        sums,
                        columns,
                    )
                bars["gate"] = bars["gate"].at[j].add(rectangle)
                bars["columns"] = bars["columns"].at[j].add(columns)
                bars["rows"] = sums + jnp.sum(s_bar, axis=-1)
            return bars

        begin, end = _softmax_blocks.visible(row, keys)
        bars = jax.lax.fori_loop(begin, end, visit, bars | per_row)
        return {n: bars[n] for n in zeros}, (bars["q"], bars["rows"])

    index = jnp.arange(rows.q.shape[0])
    bars, (q, sums) = jax.lax.scan(one, zeros, (index, rows, outer))
    return Bars(q, **bars, rows=sums)


def sink_bar(plan, sink, outer: Outer) -> jax.Array:
    """Cotangent [H] of the sink."""
    # A row that sees nothing, not even a sink, has no weight.
    lse, inner = outer.lse, outer.inner
    seen = lse > -jnp.inf
    logit = sink_logits(sink, lse.shape[1:], plan)[None]
    logit = logit - jnp.where(seen, lse, 0)
    weight = jnp.where(seen, jnp.exp(jnp.where(seen, logit, 0)), 0)
    bar = -jnp.sum(weight * inner, axis=(0, 1, 4)).reshape(sink.shape)
    return bar.astype(sink.dtype)


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


def sink_logits(sink, shape, plan):
    """[H] to [B, Hk, G, C]."""
    sink = sink.astype(plan.dtype).reshape(1, *shape[1:3], 1)
    return jnp.broadcast_to(sink, shape)
