"""Which implementation of an operator runs, and how to ask.

An operator's maths is written against `IMPLEMENTATIONS[op]`, a table from name
to `Implementation`.  A kernel joins by adding a row; the operator's public
function does not change.  A named implementation that cannot run raises with
the reason, and a list of names raises with all of them.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
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
_preferred: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "preferred", default=()
)
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


@contextlib.contextmanager
def preferred_implementation(
    names: str | Sequence[str],
) -> Iterator[None]:
    """Operators that are given no implementation try these first.

    For operators inside of layers and models: `"xla"` is differentiable in
    forward mode and any number of times, kernels are not.  It counts while a
    function is traced: what `jax.jit` traced outside stays as it is.

    Args:
      names: a name or an ordered list of names, as operators take them; one
        that an operator does not have, or that cannot run, is passed over.

    Raises:
      ValueError: a name that no operator has.
    """
    known = {name for table in IMPLEMENTATIONS.values() for name in table}
    wanted = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(
            f"names must be one of {', '.join(sorted(known))} or an ordered"
            f" list of them, got {names!r}"
        )
    token = _preferred.set(wanted)
    try:
        yield
    finally:
        _preferred.reset(token)


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
        preferred = [n for n in _preferred.get() if n in table]
        names = preferred + [n for n in table if n not in preferred]
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
