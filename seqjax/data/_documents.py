"""Documents: spans of tokens inside a few large buffers.

A corpus of many short texts is one buffer and three integer arrays, so that
shuffling, splitting and measuring are array operations and a worker process
receives it in one piece.
"""

from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from seqjax.data import _token_file

Buffer = np.ndarray | _token_file.TokenFile
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in a fixed order, each of at least one token.

    Attributes:
      buffers: token arrays [tokens of the buffer].
      buffer: int32 [documents], which buffer a document lies in.
      starts: int64 [documents], its first token there.
      lengths: int64 [documents], its tokens.
      keys: uint64 [documents], a number that depends on the document's name
        alone and decides on which side of a split it falls.
    """

    buffers: tuple[Buffer, ...]
    buffer: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> np.ndarray:
        return self.read(document, 0, int(self.lengths[document]))

    @property
    def tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.lengths.sum())

    def read(self, document: int, begin: int, end: int) -> np.ndarray:
        """Tokens begin to end (exclusive) of a document, as stored."""
        start = int(self.starts[document])
        buffer = self.buffers[int(self.buffer[document])]
        return buffer[start + begin : start + end]

    def select(self, which: np.ndarray) -> "Documents":
        """The documents that a mask or an index array names."""
        return Documents(
            self.buffers,
            self.buffer[which],
            self.starts[which],
            self.lengths[which],
            self.keys[which],
        )

    def cut(self, begins: np.ndarray, ends: np.ndarray) -> "Documents":
        """Tokens begins[i] to ends[i] of document i; drops what is empty."""
        cut = Documents(
            self.buffers,
            self.buffer,
            self.starts + begins,
            ends - begins,
            self.keys,
        )
        return cut.select(cut.lengths > 0)

    def digest(self) -> str:
        """Hash of every token and of where documents begin."""
        content = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        for buffer, start, end in self._stretches():
            for block in range(start, end, _BLOCK):
                tokens = self.buffers[buffer][block : min(block + _BLOCK, end)]
                content.update(np.ascontiguousarray(tokens).data)
        return content.hexdigest()

    def _stretches(self) -> list[tuple[int, int, int]]:
        """Buffer, start and end of runs of documents that touch."""
        if len(self) == 0:
            return []
        ends = self.starts + self.lengths
        breaks = (self.buffer[1:] != self.buffer[:-1]) | (
            self.starts[1:] != ends[:-1]
        )
        first = np.flatnonzero(np.concatenate([[True], breaks]))
        last = np.append(first[1:], len(self)) - 1
        return [
            (int(self.buffer[i]), int(self.starts[i]), int(ends[j]))
            for i, j in zip(first, last, strict=True)
        ]


def of_bytes(texts: Sequence[bytes], keys: np.ndarray) -> Documents:
    """Documents of byte strings; empty ones are left out."""
    lengths = np.array([len(text) for text in texts], np.int64)
    documents = Documents(
        (np.frombuffer(b"".join(texts), np.uint8),),
        np.zeros(len(texts), np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        np.asarray(keys, np.uint64),
    )
    return documents.select(lengths > 0)
