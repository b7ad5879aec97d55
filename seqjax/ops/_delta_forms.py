"""Rules that erase before they write: step by step, and as one T x T system.

Both are plain JAX, differentiable any number of times in both modes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _delta_chunk
from seqjax.recurrence import transitions

_EXACT = jax.lax.Precision.HIGHEST


def delta_recurrent(plan, inputs, starts, initial, *, read_first=False):
    """One token after the other, several writes a token if the plan says so.

        S' = a S,  r = beta (v - S'^T k),  S = S' + k r^T,  o = scale S^T q

    Args:
      plan: `_delta_chunk.Plan`.
      inputs: as of `_delta_parts.scalar_parts`; log_decay may have channels,
        [B, T, H, K], and beta too, [B, T, H, V]; beta None is 1.
      starts: bool [B, T] or None.
      initial: [B, H, K, V].
      read_first: r reads the state before its decay.

    Returns:
      (y [B, T, H, V], state [B, H, K, V]).
    """
    heads = inputs["v"].shape[2]

    def of_heads(name) -> Any:
        x = inputs[name]
        if x is None:
            return None
        return jnp.repeat(x.astype(plan.dtype), heads // x.shape[2], axis=2)

    x = {name: of_heads(name) for name in inputs}
    if x["read"] is None:
        x["read"] = x["k"]
    beta = x["beta"]
    if beta is not None and beta.ndim < x["v"].ndim:
        x["beta"] = beta[..., None]
    q = x.pop("q")

    def write(state, token):
        log = token["log_decay"]
        decay = recurrence.Decay() if log is None else recurrence.decay_of(log)
        if token["start"] is not None:
            start = transitions.align(token["start"], state)
            state = jnp.where(start, 0, state)
        decayed = decay.act(state)
        seen = state if read_first else decayed
        new = token["v"] - _read(seen, token["read"])
        if token["beta"] is not None:
            new = token["beta"] * new
        return decayed + token["k"][..., :, None] * new[..., None, :]

    def step(state, token):
        q, writes = token
        for i in range(plan.steps):
            state = write(state, jax.tree.map(lambda x, i=i: x[i], writes))
        return state, plan.scale * _read(state, q)

    writes = jax.tree.map(
        # [B, T * steps, ...] to [T, steps, B, ...]
        lambda x: jnp.moveaxis(
            x.reshape(x.shape[0], -1, plan.steps, *x.shape[2:]), 0, 2
        ),
        x | {"start": starts},
    )
    state, y = _scan_tokens(step, initial, (jnp.moveaxis(q, 1, 0), writes))
    return y, state


def delta_recurrent_read_first(plan, inputs, starts, initial):
    """`delta_recurrent` of a rule that reads before it decays."""
    return delta_recurrent(plan, inputs, starts, initial, read_first=True)


def dplr_recurrent(plan, inputs, starts, initial):
    """One token after the other: S = (diag(exp g) + b a^T) S + k v^T.

    Args:
      plan: `_delta_chunk.Plan`.
      inputs: as of `_delta_channel_parts.dense_dplr_parts`.
      starts: bool [B, T] or None.
      initial: [B, H, K, V].

    Returns:
      (y [B, T, H, V], state [B, H, K, V]).
    """

    def step(state, token):
        if token["start"] is not None:
            start = transitions.align(token["start"], state)
            state = jnp.where(start, 0, state)
        read = _read(state, token["a"])
        state = recurrence.decay_of(token["log_decay"]).act(state)
        state += token["b"][..., :, None] * read[..., None, :]
        state += token["k"][..., :, None] * token["v"][..., None, :]
        return state, plan.scale * _read(state, token["q"])

    tokens = {n: x.astype(plan.dtype) for n, x in inputs.items()}
    tokens = jax.tree.map(
        lambda x: jnp.moveaxis(x, 1, 0), tokens | {"start": starts}
    )
    state, y = _scan_tokens(step, initial, tokens)
    return y, state


def _scan_tokens(step, initial, tokens):
    """Scans over leading time; y comes back as [B, T, ...]."""
    if jax.tree.leaves(tokens)[0].shape[0] == 1:  # decoding: no loop
        state, y = step(initial, jax.tree.map(lambda x: x[0], tokens))
        return state, y[:, None]
    state, y = jax.lax.scan(step, initial, tokens)
    return state, jnp.moveaxis(y, 0, 1)


def solve_parallel(plan, inputs, starts, initial):
    """All tokens as a single chunk, its triangular system solved as it stands.

    Args:
      plan: with a rule that can be differentiated twice, and a chunk of T.
      inputs: as of the rule.
      starts: bool [B, T * steps] or None.
      initial: [B, H, K, V].

    Returns:
      (y [B, T, H, V], state [B, H, K, V]).
    """
    parts, zeros = plan.rule(plan, inputs, starts)
    p = jax.tree.map(lambda x: x[0], parts)
    zeros = None if zeros is None else zeros[0]
    written = jax.scipy.linalg.solve_triangular(
        p.lower,
        p.targets - jnp.matmul(p.recall, initial, precision=_EXACT),
        lower=True,
        unit_diagonal=True,
    )
    y = jnp.matmul(p.queries, initial, precision=_EXACT)
    y += jnp.matmul(p.scores, written, precision=_EXACT)
    state = recurrence.Decay(p.log, zeros).act(initial)
    state += jnp.matmul(p.keys.mT, written, precision=_EXACT)
    if p.extra is not None:
        y, state = y + p.extra[0], state + p.extra[1]
    return y.swapaxes(1, 2), state


def parallel_plan(plan: _delta_chunk.Plan, rule, length: int):
    """The plan of a single chunk of all tokens."""
    return plan._replace(rule=rule, chunk_size=length, group=1)


def _read(state, key):
    return jnp.einsum("bhk,bhkv->bhv", key, state, precision=_EXACT)
