"""The row of a step in metrics.jsonl, and the policy for bad numbers."""

import math
from typing import Any

import jax

_WHOLE = ("tokens", "skipped")


class NonFiniteError(RuntimeError):
    """A loss or gradient that is no finite number, under nonfinite="stop"."""


def fetch(step: int, result: dict[str, jax.Array]) -> dict[str, Any]:
    """The metrics of a launched step as a row of plain numbers; waits."""
    values = jax.device_get(result)
    row: dict[str, Any] = {"step": step}
    for name, value in values.items():
        if name != "finite":
            row[name] = int(value) if name in _WHOLE else float(value)
    return row


def bad_numbers(row: dict[str, Any]) -> str:
    """What in a row is not finite, as "loss = nan"; empty where all is."""
    return ", ".join(
        f"{name} = {value}"
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    )


def encode(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """A row as JSON, which knows no NaN: those become strings."""
    if row is None:
        return None
    return {
        name: str(value)
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in row.items()
    }


def decode(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The inverse of ``encode``."""
    if row is None:
        return None
    return {
        name: float(value) if isinstance(value, str) else value
        for name, value in row.items()
    }
