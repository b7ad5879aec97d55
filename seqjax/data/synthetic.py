"""Text made up on the spot, for tests and first tries.

A small vocabulary of invented words follows a random first-order chain, so a
model that learns words and their order beats one that counts letters.
"""

import numpy as np

from seqjax.data import _order

_LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def documents(
    count: int, *, seed: int = 0, words: int = 60, vocabulary: int = 40
) -> list[bytes]:
    """Documents of 1 to 2·words - 1 words each, the same for the same seed.

    Args:
      count: how many.
      seed: another seed is another language.
      words: mean number of words in a document.
      vocabulary: number of words of the language.

    Raises:
      ValueError: a number below 1.
    """
    for name, value in (
        ("count", count),
        ("words", words),
        ("vocabulary", vocabulary),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    key = _order.fold(_order.name_key("synthetic"), seed)
    language = [_word(_order.fold(key, n)) for n in range(vocabulary)]
    # Each word is followed by one of three.
    follows = _order.draws(key, 3 * vocabulary).reshape(-1, 3) % vocabulary
    texts = []
    for number in range(count):
        choices = _order.draws(_order.fold(key, vocabulary + number), 2 * words)
        length = 1 + int(choices[0]) % (2 * words - 1)
        word = int(choices[length]) % vocabulary
        text = []
        for choice in choices[:length]:
            text.append(language[word])
            word = int(follows[word, int(choice) % 3])
        texts.append(b" ".join(text) + b".\n")
    return texts


def _word(key: int) -> bytes:
    letters = _order.draws(key, 9)
    length = 2 + int(letters[0]) % 7
    return bytes(_LETTERS[int(n) % 26] for n in np.asarray(letters[1:length]))
