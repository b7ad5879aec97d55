"""Layers one by one, as a pattern and its repeats."""


def shortest(kinds: list[str]) -> tuple[tuple[str, ...], int]:
    """The shortest pattern that repeats to a list, and how often it comes.

    Args:
      kinds: name of the mixer of each layer, at least one.
    """
    depth = len(kinds)
    for size in range(1, depth):
        if depth % size == 0 and kinds == kinds[:size] * (depth // size):
            return tuple(kinds[:size]), depth // size
    return tuple(kinds), 1
