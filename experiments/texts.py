"""Text to tokens and back, as it is made."""

import codecs
from collections.abc import Sequence
import pathlib
from typing import Any, Protocol

import numpy as np

from seqjax.data import bytes_tokenizer

# Tokens of a prompt that the text after it may depend on.
_SEEN = 8
# Tokens that may share a character: one for each of its bytes.
_MOST_OF_ONE = 4
KINDS = ("auto", "tokenizer", "bytes", "ids")


class Codec(Protocol):
    """A way between text and tokens."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        ...

    def decoder(self, prompt: Sequence[int] = ()) -> "Decoder":
        """Makes text of one row, which goes on from a prompt."""
        ...


class Decoder(Protocol):
    """Makes the text of one row, token after token."""

    def feed(self, tokens: Sequence[int], last: bool) -> str:
        """The text that is certain by now and was not returned yet."""
        ...


class Bytes:
    """A token is a byte of UTF-8."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return bytes_tokenizer.encode(text).tolist()

    def decoder(self, prompt: Sequence[int] = ()) -> "BytesDecoder":
        """Makes text of one row."""
        del prompt
        return BytesDecoder()


class BytesDecoder:
    """Holds back the bytes of a character that is not whole."""

    def __init__(self):
        self._inner = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Sequence[int], last: bool) -> str:
        """The next piece of text."""
        # A vocabulary may be larger than 256; such a token is no byte.
        data = bytes(token if token < 256 else 0xFF for token in tokens)
        return self._inner.decode(data, last)


class Ids:
    """Tokens as numbers with spaces between."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        try:
            return [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise ValueError(
                f"prompt must be token ids such as '3 1 4', got {text!r}; "
                "--tokens names another way to read it"
            ) from None

    def decoder(self, prompt: Sequence[int] = ()) -> "IdsDecoder":
        """Makes text of one row."""
        del prompt
        return IdsDecoder()


class IdsDecoder:
    """Numbers with spaces between."""

    def __init__(self):
        self._begun = False

    def feed(self, tokens: Sequence[int], last: bool) -> str:
        """The next piece of text."""
        del last
        words = [str(token) for token in tokens]
        text = " ".join([""] * (self._begun and bool(words)) + words)
        self._begun |= bool(words)
        return text


class Tokenizer:
    """The tokenizer.json of a checkpoint."""

    def __init__(self, path: pathlib.Path):
        try:
            import tokenizers  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{path} needs tokenizers: pip install 'seqjax[text]', or pass "
                "--tokens=ids and token ids as the prompt"
            ) from error
        self._inner: Any = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with the special ones that the model expects."""
        return self._inner.encode(text).ids

    def decoder(self, prompt: Sequence[int] = ()) -> "TokenizerDecoder":
        """Makes text of one row."""
        return TokenizerDecoder(self._inner, prompt)


class TokenizerDecoder:
    """Decodes a few tokens together, since they may share a character.

    A token's text depends on the one before it (spaces), so what was made last,
    at first the end of the prompt, is decoded again and cut off.
    """

    def __init__(self, inner: Any, prompt: Sequence[int] = ()):
        self._inner, self._tokens = inner, [*prompt[-_SEEN:]]
        self._start, self._done = 0, len(self._tokens)

    def feed(self, tokens: Sequence[int], last: bool) -> str:
        """The next piece of text."""
        held = len(self._tokens) - self._done
        self._tokens += [int(token) for token in tokens]
        before = self._inner.decode(self._tokens[self._start : self._done])
        text = self._inner.decode(self._tokens[self._start :])
        if text.endswith("\ufffd") and held < _MOST_OF_ONE and not last:
            return ""  # a character that is not whole
        self._start, self._done = self._done, len(self._tokens)
        return text[len(before) :]


def codec(kind: str, folder: pathlib.Path, known_bytes: bool) -> Codec:
    """The way between text and tokens.

    Args:
      kind: one of `KINDS`; "auto" takes the folder's tokenizer.json, else
        bytes for a model that is known to read them.
      folder: of the model.
      known_bytes: whether it is.

    Raises:
      ValueError: there is no way, or tokenizers is missing.
    """
    path = folder / "tokenizer.json"
    if kind == "auto":
        if path.is_file():
            kind = "tokenizer"
        elif known_bytes:
            kind = "bytes"
        else:
            raise ValueError(
                f"{folder} has no tokenizer.json; pass --tokens=bytes for a "
                "model of bytes, or --tokens=ids and token ids as the prompt"
            )
    if kind == "tokenizer":
        if not path.is_file():
            raise ValueError(f"{folder} has no tokenizer.json")
        return Tokenizer(path)
    return Bytes() if kind == "bytes" else Ids()


class Stream:
    """The text of one row, up to a stop string.

    Args:
      decoder: of the row.
      stops: strings that end it; they are not part of it.

    Attributes:
      text: what has been let out.
      stopped: whether a stop string came.
    """

    def __init__(self, decoder: Decoder, stops: Sequence[str]):
        self._decoder, self._stops = decoder, stops
        self._held = ""
        self.text, self.stopped = "", False

    def feed(self, tokens: np.ndarray, last: bool = False) -> str:
        """Takes tokens; returns the text that no stop string can take back."""
        if self.stopped:
            return ""
        self._held += self._decoder.feed(tokens.tolist(), last)
        ends = [self._held.find(stop) for stop in self._stops]
        ends = [end for end in ends if end >= 0]
        if ends:
            self.stopped, out = True, self._held[: min(ends)]
        else:
            keep = 0 if last else self._beginning()
            out = self._held[: len(self._held) - keep]
        self._held = self._held[len(out) :]
        self.text += out
        return out

    def _beginning(self) -> int:
        """How much of the end may be the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
