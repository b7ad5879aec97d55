"""Exclusive prefix of affine maps over the devices of a mesh axis.

With the sequence sharded over P devices, each composes its shard into one map
`S -> A_r S + B_r`.  LASP-2 (arXiv 2502.07563) moves these maps in one
collective, of a size independent of the sequence length, and every device folds
the maps before its own:

    S_in(r) = A_{r-1} (... (A_0 S_init + B_0) ...) + B_{r-1}

Backward is the same fold from the last device to the first over the cotangents
of `S_in`, again with one collective.  Document borders between devices are
found from the first and last id of each shard, which travel in the same array.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.recurrence import prefix
from seqjax.recurrence import segments
from seqjax.recurrence import transitions

EXCHANGES = ("all_gather",)


def incoming_state(
    affine: transitions.Affine,
    initial: Any,
    segment_ids: jax.Array | None,
    axis_name: str,
) -> Any:
    """State that enters this device's shard of the sequence.

    Call inside `jax.shard_map`; every input must already vary over
    `axis_name` (see `varying.match_varying`).  Bytes received per device:
    P times (decay + zeros + state + 4 B per row for the ids) in float32.

    Args:
      affine: the map of the local shard, composed from its own tokens only.
      initial: state in front of the whole sequence, equal on every device.
      segment_ids: int32 [B, T/P] of the local shard, or None.
      axis_name: mesh axis along which time is sharded, device 0 first.

    Returns:
      The incoming state, shaped as `initial`; zero where a document starts
      with this shard's first real token.  The cotangent of `initial` is
      returned on device 0 and is zero elsewhere: the cast that made it varying
      sums them.
    """
    ids = None if segment_ids is None else borders(segment_ids)
    return _incoming(axis_name, affine, initial, ids)


def last_device(tree: Any, axis_name: str) -> Any:
    """The value of `tree` on the last device, replicated over the axis."""
    is_last = jax.lax.axis_index(axis_name) == jax.lax.axis_size(axis_name) - 1
    return jax.tree.map(
        lambda x: jax.lax.psum(
            jnp.where(is_last, x, jnp.zeros_like(x)), axis_name
        ),
        tree,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _incoming(axis_name, affine, initial, borders):
    return _incoming_fwd(axis_name, affine, initial, borders)[0]


def _incoming_fwd(axis_name, affine, initial, borders):
    gathered, ids = all_gather((affine, borders), axis_name)
    rank = jax.lax.axis_index(axis_name)
    devices = jnp.arange(jax.lax.axis_size(axis_name))
    if borders is not None:
        starts = border_starts(ids)  # [P, B]
        gathered = jax.vmap(transitions.reset)(gathered, starts)
    before = _keep(gathered, devices < rank)
    _, state = prefix.exclusive_prefix(before, initial)
    starts_here = None
    if borders is not None:
        starts_here = starts[rank]
        state = _cut(state, starts_here)
    return state, (gathered.transition, state, starts_here)


def _incoming_bwd(axis_name, residual, cotangent):
    maps, state, starts_here = residual
    if starts_here is not None:
        cotangent = _cut(cotangent, starts_here)
    rank = jax.lax.axis_index(axis_name)
    devices = jnp.arange(jax.lax.axis_size(axis_name))
    gathered = all_gather(cotangent, axis_name)
    after = _keep(
        transitions.Affine(maps.transpose(), gathered), devices > rank
    )
    zero = jax.tree.map(jnp.zeros_like, cotangent)
    _, update_bar = prefix.exclusive_prefix(after, zero, reverse=True)

    own = jax.tree.map(lambda x: x[rank], maps)
    transition_bar = own.cotangent(state, update_bar)
    initial_bar = transitions.apply(
        transitions.Affine(own.transpose(), cotangent), update_bar
    )
    first = rank == 0
    initial_bar = jax.tree.map(
        lambda x: jnp.where(first, x, jnp.zeros_like(x)), initial_bar
    )
    return transitions.Affine(transition_bar, update_bar), initial_bar, None


_incoming.defvjp(_incoming_fwd, _incoming_bwd)


def _keep(maps, keep):
    """Replaces the maps where `keep` [P] is false by the identity."""
    return jax.tree.map(
        lambda x, one: jnp.where(transitions.align(keep, x), x, one),
        maps,
        transitions.identity_map(maps),
    )


def _cut(state, where):
    return jax.tree.map(
        lambda s: jnp.where(transitions.align(where, s), jnp.zeros_like(s), s),
        state,
    )


def borders(segment_ids: jax.Array) -> jax.Array:
    """First and last real id of each row, to be gathered: int32 [B, 4].

    Each id as two halves of 16 bits, exact in float32 as an id is not.
    """
    first, last = _first_and_last(segment_ids)
    return jnp.stack(
        [first >> 16, first & 0xFFFF, last >> 16, last & 0xFFFF], axis=-1
    )


def _first_and_last(segment_ids):
    real = segment_ids != segments.PADDING
    last = jnp.max(segment_ids, axis=1)
    largest = jnp.iinfo(segment_ids.dtype).max
    first = jnp.min(jnp.where(real, segment_ids, largest), axis=1)
    return jnp.where(jnp.any(real, axis=1), first, segments.PADDING), last


def border_starts(borders):
    """Whether each shard's first real token starts a document: bool [P, B]."""
    first = (borders[..., 0] << 16) | borders[..., 1]
    last = (borders[..., 2] << 16) | borders[..., 3]
    # The last real id of all shards before: ids do not decrease.
    running = jax.lax.cummax(last, axis=0)
    before = jnp.concatenate(
        [jnp.full_like(last[:1], segments.PADDING), running[:-1]]
    )
    missing = segments.PADDING
    return (first != missing) & (before != missing) & (first != before)


def all_gather(tree, axis_name):
    """Gathers a pytree of [B, ...] arrays with one collective: [P, B, ...]."""
    leaves, structure = jax.tree.flatten(tree)
    batch = leaves[0].shape[0]
    floats = [x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    dtype = jnp.finfo(jnp.result_type(*floats)).dtype if floats else jnp.float32
    parts = []
    for x in leaves:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            x = jnp.stack([x.real, x.imag], axis=-1)
        parts.append(x.astype(dtype).reshape(batch, -1))
    widths = [p.shape[1] for p in parts]
    packed = jax.lax.all_gather(jnp.concatenate(parts, axis=1), axis_name)
    result, start = [], 0
    for x, width in zip(leaves, widths, strict=True):
        part = packed[:, :, start : start + width]
        start += width
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            part = part.reshape(part.shape[0], *x.shape, 2)
            part = jax.lax.complex(part[..., 0], part[..., 1])
        else:
            part = part.reshape(part.shape[0], *x.shape)
        result.append(part.astype(x.dtype))
    return jax.tree.unflatten(structure, result)
