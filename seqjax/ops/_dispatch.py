"""Which implementation of an operator runs, and how to ask.

An operator's maths is written against `IMPLEMENTATIONS[op]`, a table from name
to `Implementation`.  A kernel joins by adding a row; the operator's public
function does not change.  A named implementation that cannot run raises with
the reason, and a list of names raises with all of them.
"""

from collections.abc import Callable, Sequence
import threading
from typing import Any, NamedTuple

from absl import logging
import jax

from seqjax_kernels import launch


class Implementation(NamedTuple):
    """One way to run an operator.

    Attributes:
      run: called with the operator's checked arguments.
      refuses: called with the platform ("cpu", "gpu", "tpu") and the same
        arguments; returns why it cannot run them, or None.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = lambda platform, *args, **kwargs: None


# Order of each table is the order of preference.
IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {}

_chosen: dict[str, str] = {}
_warned: set[str] = set()
_lock = threading.Lock()


def platform() -> str:
    """The platform of the abstract mesh's devices, else of the default backend.

    The abstract mesh comes first, so that a program traced on one machine for
    another picks the other's implementation.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is not None and getattr(device, "platform", None):
        return device.platform
    return jax.default_backend()


def choose(
    op: str, implementation: str | Sequence[str] | None, *args, **kwargs
) -> Callable[..., Any]:
    """Picks the implementation of `op` for these arguments, at trace time.

    Args:
      op: name of the operator.
      implementation: a name, an ordered list of names, or None for the first
        that can run.
      *args: passed to `refuses`.
      **kwargs: passed to `refuses`.

    Returns:
      The chosen `run`.

    Raises:
      ValueError: unknown names, or none that can run, with every reason.
    """
    table = IMPLEMENTATIONS[op]
    if implementation is None:
        names = list(table)
    elif isinstance(implementation, str):
        names = [implementation]
    elif isinstance(implementation, Sequence):
        names = list(implementation)
    else:
        names = []
    unknown = [n for n in names if n not in list(table)]
    if unknown or not names:
        raise ValueError(
            f"{op}: implementation must be one of {', '.join(table)}, an "
            f"ordered list of them, or None, got {implementation!r}"
        )
    where = platform()
    reasons = []
    for name in names:
        reason = table[name].refuses(where, *args, **kwargs)
        if reason is None:
            if implementation is None and where == "gpu" and reasons:
                _warn_without_kernels(launch.why_not())
            _record(op, name)
            return table[name].run
        reasons.append(f"{name}: {reason}")
    raise ValueError(
        f"{op}: no implementation can run on {where}: " + "; ".join(reasons)
    )


def chosen_implementations() -> dict[str, str]:
    """What ran: the last implementation of each operator in this process."""
    with _lock:
        return dict(_chosen)


def _record(op: str, name: str) -> None:
    with _lock:
        first = op not in _chosen
        changed = _chosen.get(op) != name
        _chosen[op] = name
    if first or changed:
        logging.info("%s runs as %s on %s", op, name, platform())


def _warn_without_kernels(reason: str | None) -> None:
    """Says once that a GPU runs without its kernels, if it does."""
    with _lock:
        if reason is None or reason in _warned:
            return
        _warned.add(reason)
    logging.warning(
        "operators run on this GPU in plain JAX, without their kernels: %s",
        reason,
    )
