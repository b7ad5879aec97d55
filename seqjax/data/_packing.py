"""Rows of T tokens out of documents of any length.

Packed (concatenate, then split): the documents of an epoch, in its order, make
one stream, and row r holds its tokens r·T to (r+1)·T - 1. Each token is an
input exactly once; only the last row is padded. Unpacked: a row holds T tokens
of one document at most. Either way the target of a token is the next token of
its document, looked up beyond the end of the row where needed, so that each
token but the first of a document is a target exactly once.

A row is found by binary search in the cumulative lengths: there is no packing
state, any row can be read at any time, and resuming is knowing one number.
Cost: O(documents) time and memory an epoch, O(log documents) a row. Weakness:
a document that a row boundary cuts goes on in the next row without context.
"""

import numpy as np

from seqjax.data import _documents

PADDING = -1

Batch = dict[str, np.ndarray]


class Layout:
    """Which tokens of which document stand in which row.

    Attributes:
      rows: number of rows.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        order: np.ndarray,
        sequence_length: int,
        pack: bool,
    ):
        self._order = order
        self._lengths = lengths[order]
        self._length = sequence_length
        self._pack = pack
        # In units of tokens if packed, of rows if not.
        sizes = self._lengths if pack else -(-self._lengths // sequence_length)
        self._ends = np.cumsum(sizes)
        total = int(self._ends[-1]) if len(sizes) else 0
        self.rows = -(-total // sequence_length) if pack else total

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(document, begin, end) of the pieces of a row, in order."""
        offset = row * self._length if self._pack else row
        place = int(np.searchsorted(self._ends, offset, side="right"))
        if not self._pack:
            rows = -(-int(self._lengths[place]) // self._length)
            number = offset - (int(self._ends[place]) - rows)
            begin = number * self._length
            return [self._piece(place, begin, self._length)]
        pieces = []
        length = int(self._lengths[place])
        begin = offset - (int(self._ends[place]) - length)
        room = self._length
        while room > 0 and place < len(self._order):
            pieces.append(self._piece(place, begin, room))
            room -= pieces[-1][2] - begin
            place, begin = place + 1, 0
        return pieces

    def _piece(self, place: int, begin: int, room: int) -> tuple[int, int, int]:
        end = min(begin + room, int(self._lengths[place]))
        return int(self._order[place]), begin, end


def empty_batch(rows: int, sequence_length: int) -> Batch:
    """A batch [rows, T] of padding."""
    shape = (rows, sequence_length)
    return {
        "inputs": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
        "segment_ids": np.full(shape, PADDING, np.int32),
        "positions": np.zeros(shape, np.int32),
    }


def write_row(
    batch: Batch,
    row: int,
    documents: _documents.Documents,
    pieces: list[tuple[int, int, int]],
) -> None:
    """Writes pieces of documents into one row of an empty batch."""
    at = 0
    for segment, (document, begin, end) in enumerate(pieces):
        length = int(documents.lengths[document])
        tokens = documents.read(document, begin, min(end + 1, length))
        size = end - begin
        here = slice(at, at + size)
        known = slice(at, at + len(tokens) - 1 if end == length else at + size)
        batch["inputs"][row, here] = tokens[:size]
        batch["targets"][row, known] = tokens[1:]
        batch["weights"][row, known] = 1.0
        batch["segment_ids"][row, here] = segment
        batch["positions"][row, here] = np.arange(size, dtype=np.int32)
        at += size
