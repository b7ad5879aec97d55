"""How rules that erase before they write, with channel gates, stand in chunks.

Vectors of a kind stand beside each other, to be multiplied at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.ops import _delta_chunk


class Chunks(NamedTuple):
    """A group of chunks, [n, B, H, ...].

    Attributes:
      x: [..., 2, C, K], q (scaled) and a, C a power of two.
      y: [..., 1, C, K], b; or [..., 2, C, K], b and k.
      v: [..., C, V], what is written beside the reads: Z without k.
      log: [..., C, K], gates; -inf where a document starts.
      first: [..., K], the read of the first token, where a stands one token
        early; None where it does not.
      starts: bool [..., C, 1], where reads see nothing, if `first`; or None.
    """

    x: jax.Array
    y: jax.Array
    v: jax.Array
    log: jax.Array
    first: jax.Array | None
    starts: jax.Array | None


def channel_chunks(plan, inputs, starts) -> Chunks:
    """The delta rule as `_channel_delta_chunk` takes it.

    Args:
      plan: `_delta_chunk.Plan` with one step a token.
      inputs: as of `_delta_channel_parts.dense_channel_parts`.
      starts: bool [B, T] or None.
    """
    x = load(plan, inputs, starts)
    k, v, beta = x["k"], x["v"], x["beta"]
    a = k if x["read"] is None else x["read"]
    if beta is not None:
        a, v = beta[..., None] * a, beta[..., None] * v
    reads, writes = _once(
        jnp.stack([plan.scale * x["q"], -a], axis=-3), k[..., None, :, :]
    )
    return Chunks(
        reads,
        writes,
        v,
        x["log_decay"],
        None,
        None,
    )


def dplr_chunks(plan, inputs, starts) -> Chunks:
    """S = (diag(exp g) + b a^T) S + k v^T as `_channel_delta_chunk` takes it.

    What a token reads it reads before its decay, so a stands one token earlier.

    Args:
      plan: `_delta_chunk.Plan` with one step a token.
      inputs: as of `_delta_channel_parts.dense_dplr_parts`.
      starts: bool [B, T] or None.
    """
    x = load(plan, inputs, starts)
    a = x["a"]
    earlier = jnp.concatenate(
        [a[..., 1:, :], jnp.zeros_like(a[..., :1, :])], axis=-2
    )
    if starts is not None:
        starts = to_chunks(plan, starts[:, :, None, None]) > 0
    reads, writes = _once(
        jnp.stack([plan.scale * x["q"], earlier], axis=-3),
        jnp.stack([x["b"], x["k"]], axis=-3),
    )
    return Chunks(
        reads,
        writes,
        x["v"],
        x["log_decay"],
        a[..., 0, :],
        starts,
    )


def _once(*stacks):
    """The same; XLA would build them anew in each shape that they take."""
    return jax.lax.optimization_barrier(stacks)


def load(plan, inputs, starts) -> dict[str, Any]:
    """Inputs as [n, B, H, C, ...]; a start is a gate of -inf.

    Args:
      plan: `_delta_chunk.Plan` with one step a token.
      inputs: dict of [B, T, H, ...], or fewer heads than v has; None is kept.
      starts: bool [B, T] or None.
    """
    heads = inputs["v"].shape[2]
    if starts is not None:
        log = jnp.where(starts[..., None, None], -jnp.inf, inputs["log_decay"])
        inputs = inputs | {"log_decay": log}

    def of_heads(x):
        repeat = heads // x.shape[2]
        x = to_chunks(plan, x)
        return jnp.repeat(x, repeat, axis=2) if repeat > 1 else x

    return {n: None if x is None else of_heads(x) for n, x in inputs.items()}


def to_chunks(plan, x):
    """[B, n*C, H, ...] to [n, B, H, C, ...], C filled to a power of two.

    Tokens that are added are zeros, for all inputs the identity.
    """
    size = plan.chunk_size
    x = _delta_chunk.to_chunks(plan, x, size)
    pad = max(2, 1 << (size - 1).bit_length()) - size
    if not pad:
        return x
    return jnp.pad(x, ((0, 0),) * 3 + ((0, pad),) + ((0, 0),) * (x.ndim - 4))


def to_tokens(plan, x):
    """[n, B, H, C, V] to [B, n*C, H, V], without what was added."""
    return _delta_chunk.to_tokens(x[..., : plan.chunk_size, :])
