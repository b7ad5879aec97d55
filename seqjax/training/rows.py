"""The row of a step in metrics.jsonl, and the policy for bad numbers."""

import math
import traceback
from typing import Any

import jax

from seqjax.training import checkpoints

Row = dict[str, Any]

# Under nonfinite="skip" so many updates left out one after the other mean
# that the state is lost: no later batch brings it back.
LEFT_OUT_AT_MOST = 10

_WHOLE = ("tokens", "skipped")


class NonFiniteError(RuntimeError):
    """Numbers that are not finite, where the policy or their lot ends a run."""


def fetch(step: int, result: dict[str, jax.Array]) -> tuple[Row, bool]:
    """The metrics of a launched step as plain numbers; waits.

    Returns:
      The row, and whether the update was finite, that is, applied.
    """
    values = jax.device_get(result)
    row: Row = {"step": step}
    for name, value in values.items():
        if name != "finite":
            whole = name in _WHOLE and math.isfinite(value)
            row[name] = int(value) if whole else float(value)
    return row, bool(values["finite"])


def left_out(
    row: Row,
    in_succession: int,
    policy: str,
    steps: int,
    store: checkpoints.CheckpointStore,
) -> str:
    """What to tell about a row whose update was left out.

    Args:
      row: of a step.
      in_succession: updates left out without a break, this one included.
      policy: TrainConfig.nonfinite.
      steps: of the whole run.
      store: of the run, for the message.

    Raises:
      NonFiniteError: the policy is "stop", or so many were left out that the
        run learns nothing more.
    """
    bad = [
        f"{name} = {value}"
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    where = f"step {row['step']}: " + (
        ", ".join(bad) or "the update overflows parameters or moments"
    )
    if policy == "stop":
        raise NonFiniteError(
            f"{where}. {_what_is_left(store)}, or leave such updates out with "
            f"--config.nonfinite=skip"
        )
    if in_succession >= max(1, min(LEFT_OUT_AT_MOST, steps // 2)):
        raise NonFiniteError(
            f"{where}. {in_succession} updates in succession were left out: "
            f"the run learns nothing more. {_what_is_left(store)}"
        )
    return f"step {row['step']}: update skipped, {where.split(': ', 1)[1]}"


def check_validation(
    step: int, numbers: dict[str, float], store: checkpoints.CheckpointStore
) -> None:
    """Raises NonFiniteError unless the validation's loss is finite."""
    loss = numbers["validation_loss"]
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"step {step}: validation_loss = {loss}. {_what_is_left(store)}"
        )


def under_debug(step: int, error: FloatingPointError) -> NonFiniteError:
    """The error of a run without jit, with the line that made the number."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/seqjax/" in frame.filename and frame.filename != __file__
    ]
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what = str(error).strip().split("\n")[0]
    return NonFiniteError(
        f"after step {step}, under debug: {what}{at}. Lower "
        f"optimizer.learning_rate or optimizer.clip_norm in another workdir"
    )


def _what_is_left(store: checkpoints.CheckpointStore) -> str:
    store.wait()  # a save under way is one of the steps on disk
    steps = store.steps()
    if not steps:
        left = "No checkpoint was saved before it"
    else:
        # Finite, since no other update is applied. Not more than that: a
        # state may be far out before its loss overflows.
        left = (
            f"The checkpoints in {store.directory}, of steps {steps}, hold "
            f"finite numbers only; whether their losses had risen before, "
            f"metrics.jsonl tells"
        )
    return (
        f"{left}. In another workdir, lower optimizer.learning_rate or "
        f"optimizer.clip_norm, look with --config.debug=true"
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
