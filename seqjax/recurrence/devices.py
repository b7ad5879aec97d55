"""Exclusive prefix of maps over the devices of a mesh axis, differentiable.

With the sequence sharded over P devices, each composes its shard into one map
`S -> A_r S + B_r`.  LASP-2 (arXiv 2502.07563) moves these maps in one
collective, of a size independent of the sequence length, and every device folds
the maps before its own:

    S_in(r) = A_{r-1} (... (A_0 S_init + B_0) ...) + B_{r-1}

Backward is the same prefix from the last device to the first, with
the transposed transitions, over the cotangents g of `S_in`:

    l(r) = g(r+1) + A_{r+1}^T l(r+1)      cotangent of what device r hands on

Document borders between devices are found from the first and last id of each
shard, which travel with its map.

Bytes that a device receives, with s those of the state, a those of the
transition, b those of the one that cotangents see, i those of the ids (16
forward with `segment_ids`, else 0), all of them a row of the batch and in the
dtype of accumulation (4 bytes a number, 8 a complex one):

    exchange      forward                 backward           messages
    all_gather    P (s + a + i)           P s                1
    prefix_scan   L (s + a + i)           L (s + b)          L = ceil(log2 P)
    ring          s + i / 2               s                  1 of P - 1

a is 0 for the identity, twice 4 bytes a decay (logarithm, and whether it is 0)
for elementwise transitions (one more number where decays are complex; the
identity with `segment_ids` has a single flag), and 4 K^2 a head for dense ones,
for which the gathered form holds P of them until the backward pass.  b is a,
but 12 bytes a head or channel where there is a running maximum (`stabilised`),
whose state (m, S) is the s.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import exchange as exchanges
from seqjax.recurrence import packing
from seqjax.recurrence import transitions

EXCHANGES = exchanges.EXCHANGES


def incoming_state(
    affine: transitions.Affine,
    initial: Any,
    segment_ids: jax.Array | None,
    axis_name: str,
    exchange: str | None = None,
) -> Any:
    """State that enters this device's shard of the sequence.

    Call inside `jax.shard_map`; every input must already vary over
    `axis_name` (see `varying.match_varying`).

    Args:
      affine: the map of the local shard, composed from its own tokens only.
      initial: state in front of the whole sequence, equal on every device.
      segment_ids: int32 [B, T/P] of the local shard, or None.
      axis_name: mesh axis along which time is sharded, device 0 first.
      exchange: "all_gather", "prefix_scan", "ring", or None for the default
        (see `exchange.default_exchange`).

    Returns:
      The incoming state, shaped as `initial`; zero where a document starts
      with this shard's first real token.  The cotangent of `initial` is
      returned on device 0 and is zero elsewhere: the cast that made it varying
      sums them.
    """
    if segment_ids is not None:
        # Borders add zeros to transitions that have had none.
        nowhere = jnp.zeros_like(segment_ids[:, 0], bool)
        affine = affine.reset(nowhere)
    affine = affine._replace(transition=affine.transition.flagged())
    return incoming(affine, initial, segment_ids, axis_name, exchange)


def incoming(
    own: Any,
    initial: Any,
    segment_ids: jax.Array | None,
    axis_name: str,
    exchange: str | None = None,
) -> Any:
    """As `incoming_state`, for a map of any kind (see `exchange`)."""
    if not any(x.size for x in jax.tree.leaves(initial)):
        return initial  # of no row
    ids = None
    if segment_ids is not None:
        ids = exchanges.first_and_last(segment_ids)
    if exchange is None:
        size = jax.lax.axis_size(axis_name)
        exchange = exchanges.default_exchange(own, size)
    return _incoming(_How(exchange, axis_name), own, initial, ids)


def last_device(tree: Any, axis_name: str) -> Any:
    """The value of `tree` on the last device, replicated over the axis."""
    is_last = jax.lax.axis_index(axis_name) == jax.lax.axis_size(axis_name) - 1
    return jax.tree.map(
        lambda x: jax.lax.psum(
            jnp.where(is_last, x, jnp.zeros_like(x)), axis_name
        ),
        tree,
    )


class _How(NamedTuple):
    exchange: str
    axis_name: str

    def prefix(self, own, initial, *, reverse=False):
        """(the state in front of `own`, all maps where they were gathered)."""
        if self.exchange == "all_gather":
            maps = packing.all_gather(own, self.axis_name)
            return (
                exchanges.fold(maps, initial, self.axis_name, reverse=reverse),
                maps,
            )
        walk = {"prefix_scan": exchanges.prefix_scan, "ring": exchanges.ring}
        state = walk[self.exchange](
            own, initial, self.axis_name, reverse=reverse
        )
        return state, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _incoming(how, own, initial, ids):
    return _incoming_fwd(how, own, initial, ids)[0]


def _incoming_fwd(how, own, initial, ids):
    if ids is None:
        state, maps = how.prefix(own, initial)
        cut = None
    else:
        span = exchanges.Span(own, *ids)
        start = initial, span.identity().last
        (state, before), maps = how.prefix(span, start)
        cut = span.cuts(before)
        state = own.forget(state, cut)
    known = starts = None
    if maps is not None:
        if ids is not None:
            starts = exchanges.border_starts(maps.first, maps.last)
            maps = maps.map
        # The backward pass need not gather the transitions again.
        known = own.linears(maps, initial, starts)
    return state, (own.kept(), state, cut, known)


def _incoming_bwd(how, residual, cotangent):
    own, state, cut, known = residual
    if cut is not None:
        cotangent = transitions.forget(cotangent, cut)
    back = own.back(own.linear(state, cut), cotangent)
    zero = jax.tree.map(jnp.zeros_like, cotangent)
    if known is None:
        bar, _ = how.prefix(back, zero, reverse=True)
    else:
        cotangents = packing.all_gather(cotangent, how.axis_name)
        maps = own.back(known, cotangents)
        bar = exchanges.fold(maps, zero, how.axis_name, reverse=True)
    first = jax.lax.axis_index(how.axis_name) == 0
    initial_bar = jax.tree.map(
        lambda x: jnp.where(first, x, jnp.zeros_like(x)), back.apply(bar)
    )
    return own.cotangent(state, bar), initial_bar, None


_incoming.defvjp(_incoming_fwd, _incoming_bwd)
