"""What the exchange of states promises, and whether a program keeps it.

Bytes a device receives in one direction, s those of the state, a those of the
transition and b those of the one that cotangents see: P (s + a) forward and P s
backward for "all_gather", L (s + a) and L (s + b) for "prefix_scan" with
L = ceil(log2 P) messages, (P - 1) s for "ring", which is P - 1 instructions of
which a device takes part in one.  b is a, but where a running maximum is held.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax

from benchmarks import _cases
from benchmarks import _hlo
from benchmarks import _sharded

# Operators whose map is one state and one transition: bytes of the transition,
# a logarithm and a flag a decay, 4 bytes a number of a matrix.
_TRANSITION: dict[str, Callable[[_cases.Sizes], int]] = {
    "linear_attention": lambda n: 0,
    "linear_attention_normalized": lambda n: 0,
    "retention": lambda n: 8 * n.heads,
    "lightning_attention": lambda n: 8 * n.heads,
    "gated_linear_attention": lambda n: 8 * n.heads,
    "gated_linear_attention_channel": lambda n: 8 * n.heads * n.key_dim,
    "rwkv6": lambda n: 8 * n.heads * n.key_dim,
    "ssd": lambda n: 8 * n.heads,
    "selective_scan": lambda n: 8 * n.heads * n.value_dim * 16,
    "linear_recurrence": lambda n: 8 * n.heads * n.value_dim,
    "gated_slot_attention": lambda n: 8 * n.heads * n.key_dim,
    "delta_rule": lambda n: 4 * n.heads * n.key_dim**2,
    "delta_rule_gated": lambda n: 4 * n.heads * n.key_dim**2,
    "delta_rule_channel": lambda n: 4 * n.heads * n.key_dim**2,
    "gated_delta_product": lambda n: 4 * n.heads * n.key_dim**2,
    "comba": lambda n: 4 * n.heads * n.key_dim**2,
    "gated_delta_rule_2": lambda n: 4 * n.heads * n.key_dim**2,
    "dplr_delta_rule": lambda n: 4 * n.heads * n.key_dim**2,
}
# Those with a running maximum: a, b, and what the exchanged state is larger by
# than that which the operator returns.
_STABILISED: dict[str, Callable[[_cases.Sizes], tuple[int, int, int]]] = {
    "mlstm": lambda n: (12 * n.heads, 12 * n.heads, 0),
    "rwkv4": lambda n: (
        8 * n.heads * n.value_dim,
        12 * n.heads * n.value_dim,
        0,
    ),
    "lightnet_attention": lambda n: (
        0,
        12 * n.heads * n.key_dim,
        4 * n.heads * n.key_dim,
    ),
}
_DENSE = tuple(n for n in _TRANSITION if "delta" in n) + ("comba",)
ADDITIVE = (*(n for n in _TRANSITION if n not in _DENSE), *_STABILISED)
# Their states have a level for each doubling of T.
_LEVELS = ("log_linear_attention",)


class Direction(NamedTuple):
    """Collectives of one kind in one direction, runs and bytes of all."""

    kind: str
    times: int
    bytes: int


def state_bytes(name: str, sizes: _cases.Sizes) -> int:
    """Bytes of an operator's state, all rows and heads."""
    return sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(_sharded.state(name, sizes))
    )


def expected(
    name: str, method: str, sizes: _cases.Sizes, devices: int
) -> tuple[Direction, Direction] | None:
    """What the formula says forward and backward; None where there is none."""
    s = state_bytes(name, sizes)
    if name in _STABILISED:
        a, b, more = (sizes.batch * x for x in _STABILISED[name](sizes))
        s += more
    elif name in _TRANSITION:
        a = b = sizes.batch * _TRANSITION[name](sizes)
    else:
        return None
    hops = math.ceil(math.log2(devices))
    if method == "all_gather":
        return (
            Direction("all-gather", 1, devices * (s + a)),
            Direction("all-gather", 1, devices * s),
        )
    kind = "collective-permute"
    if method == "prefix_scan":
        return (
            Direction(kind, hops, hops * (s + a)),
            Direction(kind, hops, hops * (s + b)),
        )
    both = Direction(kind, devices - 1, (devices - 1) * s)
    return both, both


def directions(
    found: list[_hlo.Collective],
) -> tuple[list[Direction], list[Direction]]:
    """Forward and backward collectives of a program, summed by kind."""

    def summed(backward: bool) -> list[Direction]:
        part = [one for one in found if one.backward == backward]
        totals = _hlo.totals(part)
        return [Direction(kind, *totals[kind]) for kind in sorted(totals)]

    return summed(False), summed(True)


def faults(
    name: str,
    method: str,
    sizes: _cases.Sizes,
    devices: int,
    seen: dict[str, list[_hlo.Collective]],
) -> list[str]:
    """Which promises are broken, in words; [] for none.

    Args:
      name: of the case table.
      method: see ``_sharded.methods``.
      sizes: of the whole sequence.
      devices: P.
      seen: collectives by use: "both", "initial" and "final" as in
        ``_sharded.USES``, and "longer", which is "both" at a multiple of T.
    """
    wanted = expected(name, method, sizes, devices)
    broken = []
    here, there = directions(seen["both"]), directions(seen["longer"])
    grows = name in _LEVELS or (
        name == "softmax_attention" and method != "window"
    )
    if here != there and not grows:
        broken.append(f"depends on T: {_said(here)}, longer {_said(there)}")
    if wanted is None:
        return broken
    for direction, got, want in zip(
        ("forward", "backward"), here, wanted, strict=True
    ):
        if got != [want]:
            broken.append(
                f"{direction} {_said(got)}, the formula says {_said([want])}"
            )
    one = Direction("all-reduce", 1, state_bytes(name, sizes))
    for use, place in (("initial", 1), ("final", 0)):
        more = directions(seen[use])
        want = [list(part) for part in here]
        want[place] = sorted([*want[place], one])
        if [sorted(part) for part in more] != want:
            broken.append(
                f"{use} state: {_said(more)}, promised one all-reduce of "
                f"{one.bytes} B more than {_said(here)}"
            )
    return broken


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return " / ".join(_said(part) for part in value)
    parts = [f"{d.times} {d.kind} {d.bytes} B" for d in value]
    return " + ".join(parts) or "nothing"
