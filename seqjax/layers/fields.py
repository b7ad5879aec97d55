"""Checks of plain dataclasses that hold sizes and choices.

The type of a field says what it accepts: `int` a whole number of at least 1,
`float` a finite number above 0, `bool`, `str` any, `Literal[...]` one of a few
names, and each of them `| None`.  `bounded` gives a number other bounds.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any


def bounded(default: Any, least: float, most: float = math.inf) -> Any:
    """A dataclass field whose number lies in [least, most]."""
    return dataclasses.field(
        default=default, metadata={"least": least, "most": most}
    )


def check(group: Any, path: str = "") -> None:
    """Requires every field of a dataclass to be of its type and in bounds.

    Fields that are themselves dataclasses, and tuples, are left to the caller.

    Args:
      group: the dataclass.
      path: what stands before the names of its fields, such as "gla.".

    Raises:
      ValueError: naming the field, its value and what is accepted.
    """
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        kind, optional = _without_none(hints[field.name])
        value = getattr(group, field.name)
        if optional and value is None:
            continue
        wanted = _fault(value, kind, field.metadata)
        if wanted:
            raise ValueError(
                f"{path}{field.name} must be {wanted}"
                f"{' or None' if optional else ''}, got {value!r}"
                f"{_nearest(value, kind)}"
            )


def check_choice(path: str, value: str, accepted: tuple[str, ...]) -> None:
    """Requires one of a few names."""
    if value not in accepted:
        raise ValueError(
            f"{path} must be one of {accepted}, got {value!r}; the nearest is "
            f"{closest(value, accepted)!r}"
        )


def closest(value: Any, accepted: tuple[str, ...]) -> str:
    """The accepted name that looks most like the value, whatever the case."""
    folded = {name.lower(): name for name in reversed(accepted)}
    near = difflib.get_close_matches(str(value).lower(), folded, 1, 0.0)
    return folded[near[0]]


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        return kinds[0], len(kinds) < len(typing.get_args(hint))
    return hint, False


def _fault(value: Any, kind: Any, bounds: Any) -> str:
    """What a value of that kind must be, where it is not."""
    least, most = bounds.get("least"), bounds.get("most", math.inf)
    if kind is int:
        least = 1 if least is None else least
        good = type(value) is int and least <= value <= most
        return "" if good else f"a whole number {_range(least, most)}"
    if kind is float:
        number = type(value) in (int, float) and math.isfinite(value)
        if least is None:
            return "" if number and value > 0 else "a finite number above 0"
        good = number and least <= value <= most
        return "" if good else f"a finite number {_range(least, most)}"
    if kind is bool:
        return "" if type(value) is bool else "True or False"
    if typing.get_origin(kind) is typing.Literal:
        names = typing.get_args(kind)
        return "" if value in names else f"one of {names}"
    return ""


def _range(least: float, most: float) -> str:
    if most == math.inf:
        return f"of at least {least}"
    return f"from {least} to {most}"


def _nearest(value: Any, kind: Any) -> str:
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return f"; the nearest is {closest(value, typing.get_args(kind))!r}"
