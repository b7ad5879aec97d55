"""Everything here that knows Orbax: writing steps and its log."""

import os
import pathlib
import shutil
import sys
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from seqjax.training import _processes

_hooks: list[Any] = []  # what sys.excepthook was before


def open_manager(
    directory: pathlib.Path, keep: int, keep_every: int | None
) -> ocp.CheckpointManager:
    """Makes the directory, clears what kills have left, sets the policy."""
    _hush()
    directory.mkdir(parents=True, exist_ok=True)
    if _processes.is_first():
        for path in directory.glob("*.orbax-checkpoint-tmp*"):
            logging.info("removing unfinished checkpoint %s", path)
            shutil.rmtree(path)
    policy = ocp.checkpoint_managers
    preserve: list[Any] = [policy.LatestN(n=keep)]
    if keep_every is not None:
        preserve.append(policy.EveryNSteps(keep_every))
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(preserve),
            # A damaged step must not keep the manager from opening.
            lightweight_initialize=True,
        ),
        handler_registry=_handlers(),
    )


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """What writes each item.

    Orbax lets every replica of an array write a slice of it. One process gains
    nothing by that, and pays for a program for each slice of each shape before
    its first save (half of that save) and for hundreds of calls in each.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        use_replica_parallel=jax.process_count() > 1
    )
    return ocp.handlers.create_default_handler_registry(
        state=ocp.PyTreeCheckpointHandler(
            type_handler_registry=(
                ocp.type_handlers.create_type_handler_registry(
                    (jax.Array, arrays)
                )
            )
        ),
        data=ocp.JsonCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
    )


def start_save(
    manager: ocp.CheckpointManager,
    step: int,
    arrays: dict[str, jax.Array],
    data: list[dict],
    manifest: dict,
) -> None:
    """Copies the arrays off the devices, then writes in the background."""
    manager.save(
        step,
        args=ocp.args.Composite(
            # Orbax refuses empty arrays; the manifest alone restores them.
            state=ocp.args.PyTreeSave(
                {name: leaf for name, leaf in arrays.items() if leaf.size}
            ),
            data=ocp.args.JsonSave({"processes": data}),
            meta=ocp.args.JsonSave(manifest),
        ),
        force=True,
    )


def _hush() -> None:
    """Drops Orbax's INFO lines, dozens a save, and its error tracebacks.

    The errors themselves are raised again by the caller with a remedy.  When
    one of a save's writes fails, Orbax closes its event loop, and each of the
    others is told as an uncaught exception of a closed loop.
    """
    if sys.excepthook is not _without_closed_loops:
        _hooks.append(sys.excepthook)
        sys.excepthook = _without_closed_loops
    logger = logging.get_absl_logger()
    if _worth_reading not in logger.filters:
        logger.addFilter(_worth_reading)


def _without_closed_loops(kind, error, trace) -> None:
    if kind is RuntimeError and str(error) == "Event loop is closed":
        return
    _hooks[-1](kind, error, trace)


def _worth_reading(record) -> bool:
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    loud = record.levelname in ("WARNING", "ERROR", "CRITICAL")
    return loud and record.exc_info is None
