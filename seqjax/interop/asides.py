"""Tensors of a checkpoint that no parameter of ours stands for.

Constants follow from the config and are written again; others may be there and
are not loaded: copies of a tensor that is, and parts that the model does not
have.  None is passed over in silence: constants and copies are compared, and
what is left out is said in one line.
"""

from collections.abc import Callable, Iterable, Mapping
import re
from typing import Any, NamedTuple

from absl import logging
import jax.numpy as jnp
import numpy as np

from seqjax.interop import safetensors


class Constant(NamedTuple):
    """A tensor of theirs that follows from the config.

    Attributes:
      theirs: name of the tensor.
      shape: of it.
      make: computes it, float32.
    """

    theirs: str
    shape: tuple[int, ...]
    make: Callable[[], Any]


class Aside(NamedTuple):
    """Tensors of theirs that are not loaded, where a checkpoint has them.

    Attributes:
      theirs: regular expression of their whole names.
      what: they are.
      twin: name of the tensor that they must equal; None for whatever they are.
    """

    theirs: str
    what: str
    twin: str | None = None


def found(asides: Iterable[Aside], names: Iterable[str]) -> dict[str, Aside]:
    """Which tensors are left out, and as what."""
    asides = tuple(asides)
    return {
        name: aside
        for name in names
        for aside in asides
        if re.fullmatch(aside.theirs, name)
    }


def check(
    constants: Iterable[Constant],
    left: Mapping[str, Aside],
    entries: Mapping[str, safetensors.Entry],
) -> None:
    """Requires constants and copies to be what they stand for.

    Raises:
      ValueError: naming all that are not.
    """
    wrong = []
    for constant in constants:
        stored = safetensors.read(entries[constant.theirs])
        rounding = float(jnp.finfo(stored.dtype).eps)
        error = np.abs(stored.astype(np.float32) - constant.make())
        if not error.max() <= 4 * rounding:
            wrong.append(f"{constant.theirs}: off by {error.max():.1e}")
    wrong += [
        f"{name}: it must be {aside.what}"
        for name, aside in left.items()
        if aside.twin and not _same(entries[name], entries[aside.twin])
    ]
    if wrong:
        raise ValueError(
            "these tensors are not what config.json implies; a model with "
            "others is not supported:\n  " + "\n  ".join(wrong)
        )


def say(
    left: Mapping[str, Aside], entries: Mapping[str, safetensors.Entry]
) -> None:
    """One line on what is left out."""
    if not left:
        return
    groups: dict[str, list[str]] = {}
    for name, aside in left.items():
        groups.setdefault(aside.what, []).append(name)
    parts = [
        f"{len(names)} of {what} ({names[0]}"
        + (", ...)" if len(names) > 1 else ")")
        for what, names in groups.items()
    ]
    size = sum(safetensors.size(entries[name]) for name in left)
    logging.warning(
        "%d tensors, %.1f MB, are not loaded: %s",
        len(left),
        size / 1e6,
        "; ".join(parts),
    )


def _same(a: safetensors.Entry, b: safetensors.Entry) -> bool:
    """Whether two tensors have the same bytes, read in pieces."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step, size = 1 << 24, safetensors.size(a)
    with a.file.open("rb") as one, b.file.open("rb") as other:
        one.seek(a.start)
        other.seek(b.start)
        for start in range(0, size, step):
            count = min(step, size - start)
            if one.read(count) != other.read(count):
                return False
    return True
