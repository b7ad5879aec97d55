"""The choice of each token's experts, and two ways through those chosen.

    y_n = sum_{e in top-k(s_n)} w_ne MLP_e(x_n)

"dense" runs every expert on every token, one expert after the other, with
weights that are 0 where it was not chosen: E / k times the products needed, in
large matrices.  "grouped" sorts the rows by expert for one ragged product.
Both give a token the same result whatever the other tokens are.
"""

from collections.abc import Callable, Mapping
import functools

import jax
import jax.numpy as jnp

from seqjax.layers import norms
from seqjax.recurrence import varying

Activation = Callable[[jax.Array], jax.Array]


def route(
    scores: jax.Array,
    active: int,
    *,
    correction: jax.Array | None = None,
    groups: int = 1,
    active_groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The experts of each token.

    Args:
      scores: [N, E], float.
      active: k, experts of a token.
      correction: [E], added for the choice alone; None for none.
      groups: G, neighbouring experts that are chosen together; divides E.
      active_groups: groups that a token may choose from: those whose best two
        experts have the largest sum.

    Returns:
      The scores of the chosen [N, k] and their indices, int32 [N, k], best
      first; among equals the lowest index first.
    """
    wanted = jax.lax.stop_gradient(scores)
    if correction is not None:
        correction = jax.lax.stop_gradient(correction).astype(wanted.dtype)
        wanted = wanted + norms.expand(correction, wanted)
    if active_groups < groups:
        grouped = wanted.reshape(wanted.shape[0], groups, -1)
        best = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
        kept = jax.lax.top_k(best, active_groups)[1]
        open_ = jnp.any(jax.nn.one_hot(kept, groups, dtype=bool), axis=1)
        grouped = jnp.where(open_[:, :, None], grouped, -jnp.inf)
        wanted = grouped.reshape(wanted.shape)
    index = jax.lax.top_k(wanted, active)[1]
    return jnp.take_along_axis(scores, index, axis=1), index


def dense(
    act: Activation,
    x: jax.Array,
    weights: jax.Array,
    index: jax.Array,
    kernels: Mapping[str, jax.Array],
) -> jax.Array:
    """Every expert on every token, weights 0 where it was not chosen.

    Args:
      act: on the gate, or on the hidden layer of experts without one.
      x: [N, D].
      weights: of each token's experts, [N, k].
      index: which they are, int [N, k].
      kernels: "up" [E, D, W], "down" [E, W, D] and, of experts with a gate,
        "gate" [E, D, W].

    Returns:
      [N, D], in the dtype of the weights.
    """
    chosen = jax.nn.one_hot(index, kernels["up"].shape[0], dtype=bool)
    shares = jnp.sum(jnp.where(chosen, weights[:, :, None], 0), axis=1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(y, expert):
        own, share = expert
        out = _expert(act, own, jnp.matmul, x)
        return y + out * share[:, None], None

    y = jnp.zeros(x.shape, shares.dtype)
    y = varying.match_varying(y, varying.varying_axes(x))
    return jax.lax.scan(one, y, (kernels, shares.T))[0]


def grouped(
    act: Activation,
    x: jax.Array,
    weights: jax.Array,
    index: jax.Array,
    kernels: Mapping[str, jax.Array],
) -> jax.Array:
    """The chosen experts alone, rows sorted by expert; all as of `dense`."""
    active, flat = index.shape[1], index.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    chosen = jax.nn.one_hot(flat, kernels["up"].shape[0], dtype=jnp.int32)
    counts = jnp.sum(chosen, axis=0)

    def product(rows, kernel):
        return jax.lax.ragged_dot(rows, kernel, counts)

    # Each row has one place, so that the sums of its gradient have an order.
    rows = jnp.repeat(x, active, axis=0)
    rows = rows.at[order].get(unique_indices=True, mode="clip")
    y = _expert(act, kernels, product, rows)
    back = jnp.argsort(order)
    y = y.at[back].get(unique_indices=True, mode="clip")
    y = y.reshape(*index.shape, -1) * weights[:, :, None]
    return jnp.sum(y, axis=1)


def _expert(
    act: Activation,
    kernels: Mapping[str, jax.Array],
    product: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
) -> jax.Array:
    """An MLP; `product(x, kernel)` is its matrix product."""
    hidden = product(x, kernels["up"])
    if "gate" in kernels:
        hidden = act(product(x, kernels["gate"])) * hidden
    else:
        hidden = act(hidden)
    return product(hidden, kernels["down"])
