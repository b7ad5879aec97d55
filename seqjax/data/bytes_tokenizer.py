"""The built-in tokenizer: a token is a byte.

No special tokens: where documents meet is said by segment ids, so all 256
values stay text and a prompt needs no preamble.
"""

import numpy as np

VOCAB_SIZE = 256


def encode(text: str) -> np.ndarray:
    """Tokens int32 [T] of a text, its UTF-8 bytes."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(tokens: np.ndarray) -> str:
    """Text of tokens [T]; bytes that are no UTF-8 show as U+FFFD.

    Raises:
      ValueError: a token below 0 or above 255.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens must have shape [T], got {tokens.shape}")
    wrong = tokens[(tokens < 0) | (tokens >= VOCAB_SIZE)]
    if wrong.size:
        raise ValueError(f"tokens must be from 0 to 255, got {wrong[0]}")
    return tokens.astype(np.uint8).tobytes().decode("utf-8", "replace")
