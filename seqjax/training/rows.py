"""The row of a step in metrics.jsonl, and the policy for bad numbers."""

import math
from typing import Any

import jax

from seqjax.training import checkpoints

Row = dict[str, Any]

_WHOLE = ("tokens", "skipped")


class NonFiniteError(RuntimeError):
    """A loss or gradient that is no finite number, under nonfinite="stop"."""


def fetch(step: int, result: dict[str, jax.Array]) -> Row:
    """The metrics of a launched step as a row of plain numbers; waits."""
    values = jax.device_get(result)
    row: Row = {"step": step}
    for name, value in values.items():
        if name != "finite":
            whole = name in _WHOLE and math.isfinite(value)
            row[name] = int(value) if whole else float(value)
    return row


def check(row: Row, policy: str, store: checkpoints.CheckpointStore) -> str:
    """What to tell about a row whose update was left out; "" where none was.

    Args:
      row: of a step.
      policy: TrainConfig.nonfinite.
      store: of the run, for the message.

    Raises:
      NonFiniteError: the policy is "stop".
    """
    bad = ", ".join(
        f"{name} = {value}"
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    )
    if not bad:
        return ""
    if policy == "skip":
        return f"step {row['step']}: update skipped, {bad}"
    raise NonFiniteError(
        f"step {row['step']}: {bad}. No checkpoint holds it; those of steps "
        f"{store.steps() or 'none'} in {store.directory} are good. In "
        f"another workdir, lower optimizer.learning_rate or "
        f"optimizer.clip_norm, look with --config.debug=true, or leave such "
        f"updates out with "
        f"--config.nonfinite=skip"
    )


def encode(row: Row | None) -> Row | None:
    """A row as JSON, which knows no NaN: those become strings."""
    if row is None:
        return None
    return {
        name: str(value)
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in row.items()
    }


def decode(row: Row | None) -> Row | None:
    """The inverse of ``encode``."""
    if row is None:
        return None
    return {
        name: float(value) if isinstance(value, str) else value
        for name, value in row.items()
    }
