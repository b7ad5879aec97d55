"""Layers one by one, as a pattern and its repeats."""

from typing import Any


def shortest(kinds: list[Any]) -> tuple[tuple[Any, ...], int]:
    """The shortest pattern that repeats to a list, and how often it comes.

    Args:
      kinds: what each layer is, such as the name of its mixer; at least one.
    """
    depth = len(kinds)
    for size in range(1, depth):
        if depth % size == 0 and kinds == kinds[:size] * (depth // size):
            return tuple(kinds[:size]), depth // size
    return tuple(kinds), 1
