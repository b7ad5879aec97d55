"""Exclusive prefix over devices, written once for every kind of map.

Each of the P devices along a mesh axis holds one map; each needs the state in
front of its own.  What a map must offer (`Affine` and `Stabilised` do):

    m.apply(state)         the state behind it
    m.compose(earlier)     the map of both
    m.identity()           the map that changes nothing, of equal shapes
    m.reset(where)         the map that forgets the state in front of it
    m.forget(state, where) the state itself forgotten
    m.linear(state, cut)   what a small change of the state sees, cut off or not
    m.linears(maps, ...)   the same of P maps in a row
    m.back(linear, bar)    the map that cotangents pass through
    m.cotangent(state, bar)  the map's cotangent, bar being that behind it
    m.kept()               the map without what only `apply` needs

Three ways, P devices, L = ceil(log2 P), by what a device receives:

    all_gather   all P maps, in one collective      then folds those before it
    prefix_scan  L maps, in L messages one after    composing at every step
                 the other
    ring         1 state, the last device after     P - 1 messages in sequence
                 P - 1 messages
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import packing
from seqjax.recurrence import segments
from seqjax.recurrence import transitions

EXCHANGES = ("all_gather", "prefix_scan", "ring")

# What a message costs before its first byte, in bytes: 10 us at 100 GB/s.
_MESSAGE = 2**20


def default_exchange(own: Any, devices: int) -> str:
    """The way taken with `exchange=None`: by bytes and number of devices.

    An elementwise transition is small beside its state, and its gathered maps
    are folded at the cost of reading them: always "all_gather".  A dense one is
    as large as the state or larger, and P of them must be held; with m bytes a
    map, and 2^20 bytes for the latency of a message,

        all_gather   2^20 + (P - 1) m         prefix_scan   L (2^20 + m)

    and the smaller wins, "all_gather" if equal: with m = 256 KiB (8 heads of
    64 x 64) up to 16 devices, with m = 4 MiB up to 2.  "ring" is never chosen:
    it moves least, and all devices wait in turn.

    Args:
      own: the map of a device.
      devices: P.

    Returns:
      "all_gather" or "prefix_scan".
    """
    if not isinstance(own, transitions.Affine):
        return "all_gather"
    if not isinstance(own.transition, transitions.Dense):
        return "all_gather"
    size = packing.bytes_of(own)
    messages = math.ceil(math.log2(devices))
    gather = _MESSAGE + (devices - 1) * size
    scan = messages * (_MESSAGE + size)
    return "all_gather" if gather <= scan or devices == 1 else "prefix_scan"


class Span(NamedTuple):
    """The map of neighbouring shards together with the ids at its ends.

    It acts on a state paired with the last real id in front, and forgets the
    state where that id is not its first: a document border between shards.  A
    shard without a real token has a map that changes nothing, so that it does
    not matter on which side of it the border is.

    Attributes:
      map: the map inside.
      first: int32 [B], first real id, -1 where there is none.
      last: int32 [B], last real id.
    """

    map: Any
    first: jax.Array
    last: jax.Array

    def cuts(self, before: jax.Array) -> jax.Array:
        """Whether a document starts here, after real id `before`: bool [B]."""
        missing = segments.PADDING
        real = (self.first != missing) & (before != missing)
        return real & (self.first != before)

    def apply(self, state):
        """(state, last id) behind the span."""
        state, before = state
        state = self.map.forget(state, self.cuts(before))
        return self.map.apply(state), jnp.maximum(before, self.last)

    def compose(self, earlier: "Span") -> "Span":
        """The span of both."""
        inside = self.map.reset(self.cuts(earlier.last))
        missing = earlier.first == segments.PADDING
        return Span(
            inside.compose(earlier.map),
            jnp.where(missing, self.first, earlier.first),
            # Ids do not decrease, and padding is smaller than any of them.
            jnp.maximum(self.last, earlier.last),
        )

    def identity(self) -> "Span":
        """The span of no token."""
        none = jnp.full_like(self.first, segments.PADDING)
        return Span(self.map.identity(), none, none)


def first_and_last(segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last real id of each row [B, T]: int32 [B], -1 for none."""
    real = segment_ids != segments.PADDING
    padding = segments.PADDING
    last = jnp.max(segment_ids, axis=1, initial=padding)
    largest = jnp.iinfo(segment_ids.dtype).max
    ids = jnp.where(real, segment_ids, largest)
    first = jnp.min(ids, axis=1, initial=largest)
    return jnp.where(jnp.any(real, axis=1), first, padding), last


def border_starts(first: jax.Array, last: jax.Array) -> jax.Array:
    """Whether each of P shards starts a document, ids [P, B]: bool [P, B]."""
    # The last real id of all shards before: ids do not decrease.
    running = jax.lax.cummax(last, axis=0)
    before = jnp.concatenate(
        [jnp.full_like(last[:1], segments.PADDING), running[:-1]]
    )
    return Span(None, first, last).cuts(before)


def fold(maps: Any, initial: Any, axis_name: str, *, reverse=False) -> Any:
    """State in front of this device's map, from all maps [P, ...].

    Args:
      maps: of all devices, with a leading axis P.
      initial: state in front of device 0, behind device P-1 if `reverse`.
      axis_name: mesh axis.
      reverse: from the last device to the first.

    Returns:
      The state after the maps of devices before this one (after, if reverse).
    """
    rank = jax.lax.axis_index(axis_name)
    devices = jnp.arange(jax.lax.axis_size(axis_name))
    taken = devices > rank if reverse else devices < rank

    def step(state, shard):
        one, taken = shard
        return _where(taken, one.apply(state), state), None

    return jax.lax.scan(step, initial, (maps, taken), reverse=reverse)[0]


def prefix_scan(own: Any, initial: Any, axis_name: str, *, reverse=False):
    """State in front of this device's map, in ceil(log2 P) messages of maps.

    What stands before a device doubles with every message: it sends its own map
    after what it knows, and receives as much from 1, 2, 4, ... devices before.

    Args:
      own: this device's map.
      initial: as in `fold`.
      axis_name: mesh axis.
      reverse: from the last device to the first.

    Returns:
      As `fold`.
    """
    size = jax.lax.axis_size(axis_name)
    rank = jax.lax.axis_index(axis_name)
    order = size - 1 - rank if reverse else rank
    before, distance = None, 1
    while distance < size:
        sent = own if before is None else own.compose(before)
        pairs = [(i, i + distance) for i in range(size - distance)]
        if reverse:
            pairs = [(j, i) for i, j in pairs]
        came = packing.permute(sent, axis_name, pairs)
        came = _where(order >= distance, came, came.identity())
        before = came if before is None else before.compose(came)
        distance *= 2
    return initial if before is None else before.apply(initial)


def ring(own: Any, initial: Any, axis_name: str, *, reverse=False):
    """State in front of this device's map, handed from device to device.

    Args:
      own: this device's map.
      initial: as in `fold`.
      axis_name: mesh axis.
      reverse: from the last device to the first.

    Returns:
      As `fold`.
    """
    size = jax.lax.axis_size(axis_name)
    rank = jax.lax.axis_index(axis_name)
    order = range(size)[::-1] if reverse else range(size)
    state = initial
    for source, target in zip(order, order[1:], strict=False):
        came = packing.permute(own.apply(state), axis_name, [(source, target)])
        state = _where(rank == target, came, state)
    return state


def _where(condition, x, y):
    """Selects whole pytrees by a scalar."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), x, y)
