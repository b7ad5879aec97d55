"""Rules with one gate a key channel as one chunk: KDA, Gated DeltaNet 2, DPLR.

The decay between two tokens stands inside the sum over the key channels; apart
from that these are the parts of `_delta_parts`.  For the parallel form alone:
memory O(C^2 K) a chunk, differentiable in both modes, twice.
"""

from typing import Any

import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _channel_pairs
from seqjax.ops import _decays
from seqjax.ops import _delta_chunk


def dense_channel_parts(plan, inputs, starts):
    """`Parts` of a group of chunks of the delta rule.

    Args:
      plan: `_delta_chunk.Plan` with one step a token.
      inputs: q, k [B, n*C, G, K]; v [B, n*C, H, V]; beta [B, n*C, H] or None
        for 1; log_decay [B, n*C, H, K]; read [B, n*C, G, K], the key to read
        with, or None for k.
      starts: bool [B, n*C] or None.

    Returns:
      (Parts, zeros [n, B, H, K]).
    """
    x = _load(plan, inputs)
    log = _channel_pairs.with_starts(x["log_decay"], _starts(plan, starts))
    k, v, beta = x["k"], x["v"], x["beta"]
    a = k if x["read"] is None else x["read"]
    q = plan.scale * x["q"]
    scores, queries, tail = _inside(q, k, log)
    lower, recall, _ = _inside(a, k, log)
    targets = v
    if beta is not None:
        beta = beta[..., None]
        lower, recall, targets = beta * lower, beta * recall, beta * v
    total = recurrence.decay_of(jnp.sum(log, axis=-2))
    parts = _delta_chunk.Parts(
        lower=jnp.where(_strictly(lower), lower, 0),
        scores=scores,
        targets=targets,
        recall=recall,
        queries=queries,
        keys=tail,
        log=total.log,
    )
    return parts, total.zeros


def dense_dplr_parts(plan, inputs, starts):
    """`Parts` of S = (diag(exp g) + b a^T) S + k v^T.

    What the core solves for are the reads a_i . S_{i-1}, written with keys b;
    they come before the decay of their own token, so a stands one token
    earlier among the vectors that read.

    Args:
      plan: `_delta_chunk.Plan` with one step a token.
      inputs: q, k, a, b, log_decay [B, n*C, H, K]; v [B, n*C, H, V].
      starts: bool [B, n*C] or None.

    Returns:
      (Parts, zeros [n, B, H, K]).
    """
    x = _load(plan, inputs)
    starts = _starts(plan, starts)
    log = _channel_pairs.with_starts(x["log_decay"], starts)
    a, v = x["a"], x["v"]
    earlier = jnp.concatenate(
        [a[..., 1:, :], jnp.zeros_like(a[..., :1, :])], axis=-2
    )
    q = plan.scale * x["q"]
    scores_b, queries, tail_b = _inside(q, x["b"], log)
    scores_k, _, tail_k = _inside(q, x["k"], log)
    erased, recall, _ = _inside(earlier, x["b"], log)
    recalled, _, _ = _inside(earlier, x["k"], log)

    def later(rows, first):
        rows = jnp.concatenate([first, rows[..., :-1, :]], axis=-2)
        if starts is None:
            return rows
        return jnp.where(starts[..., None], 0, rows)

    empty = jnp.zeros_like(erased[..., :1, :])
    erased, recalled = later(erased, empty), later(recalled, empty)

    def mm(subscripts, x, y):
        return jnp.einsum(subscripts, x, y, precision=plan.precision)

    total = recurrence.decay_of(jnp.sum(log, axis=-2))
    parts = _delta_chunk.Parts(
        lower=-erased,
        scores=scores_b,
        targets=mm("...ij,...jv->...iv", recalled, v),
        recall=-later(recall, a[..., :1, :]),
        queries=queries,
        keys=tail_b,
        log=total.log,
        extra=(
            mm("...ij,...jv->...iv", scores_k, v),
            mm("...jk,...jv->...kv", tail_k, v),
        ),
    )
    return parts, total.zeros


def _inside(x, y, log):
    """`_channel_pairs.channel_inside` in [..., C, C, K] numbers."""
    finite, zeros = _decays.finite_part(log.mT, None)
    assert finite is not None
    decays = _decays.chunk_decays(
        finite, zeros, shape=finite.shape, dtype=x.dtype
    )
    products = x[..., :, None, :] * y[..., None, :, :]
    scores = jnp.sum(products * jnp.moveaxis(decays.pairs, -3, -1), axis=-1)
    return scores, x * decays.head.mT, y * decays.tail.mT


def _load(plan, inputs) -> dict[str, Any]:
    """Inputs as [n, B, H, C, ...], every value head with its key head."""
    heads = inputs["v"].shape[2]

    def load(x):
        repeat = heads // x.shape[2]
        x = _delta_chunk.to_chunks(plan, x, plan.chunk_size)
        return jnp.repeat(x, repeat, axis=2) if repeat > 1 else x

    return {n: None if x is None else load(x) for n, x in inputs.items()}


def _starts(plan, starts):
    """[B, n*C] as [n, B, 1, C]."""
    if starts is None:
        return None
    starts = starts.reshape(starts.shape[0], plan.group, 1, plan.chunk_size)
    return jnp.moveaxis(starts, 1, 0)


def _strictly(square):
    """The strictly lower mask, aligned to [..., C, C]."""
    size = square.shape[-1]
    mask = jnp.tri(size, k=-1, dtype=bool)
    return mask.reshape((1,) * (square.ndim - 2) + mask.shape)
