"""A flat binary file of token ids, read through memory mapping.

The file is a header of 64 bytes, little-endian, and then the ids:

    0   8 bytes   b"SEQJAXTK"
    8   uint32    version of the format, 1
    12  uint32    bytes per id: 1, 2 or 4 (unsigned)
    16  uint64    number of ids
    24  int64     id that ends a document, -1 if the file is one document
    32  uint32    vocabulary size, every id is below it (0 stands for 2**32)
    36  zeros up to 64

The end-of-document id belongs to the document it ends: a model learns it as
any other token, and the next document starts behind it.
"""

from collections.abc import Iterable
import os
import struct

import numpy as np

from seqjax.data import _errors

_MAGIC = b"SEQJAXTK"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQqI")
_HEADER_BYTES = 64
_DTYPES = {1: "<u1", 2: "<u2", 4: "<u4"}
_BLOCK = 1 << 22


class TokenFile:
    """The ids of one token file, opened lazily and again in each process.

    Raises (from the constructor):
      DataError: no token file, another version, or a truncated one.
    """

    def __init__(self, path: str):
        self.path = path
        self._tokens: np.ndarray | None = None
        self.dtype, self.count, self.end_of_document = _read_header(path)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: slice) -> np.ndarray:
        return self._map()[index]

    def __reduce__(self):
        # A memory map would be pickled with its whole content.
        return TokenFile, (self.path,)

    def _map(self) -> np.ndarray:
        if self._tokens is None:
            self._tokens = np.memmap(
                self.path,
                dtype=self.dtype,
                mode="r",
                offset=_HEADER_BYTES,
                shape=(self.count,),
            )
        return self._tokens

    def scan(self, vocab_size: int) -> np.ndarray:
        """Ends of the documents, int64 [documents], after checking each id.

        Raises:
          DataError: an id at or above vocab_size; names file and index.
        """
        ends = []
        for start in range(0, self.count, _BLOCK):
            block = self[start : start + _BLOCK]
            if int(block.max()) >= vocab_size:
                index = int(np.argmax(block >= vocab_size))
                raise _errors.DataError(
                    f"{self.path}: token {start + index} is id "
                    f"{int(block[index])}, at or above vocab_size "
                    f"{vocab_size}; raise vocab_size or write the file with "
                    "the tokenizer of the model"
                )
            if self.end_of_document is not None:
                found = np.flatnonzero(block == self.end_of_document)
                ends.append(found + start + 1)
        ends = np.concatenate([*ends, np.zeros(0, np.int64)]).astype(np.int64)
        if ends.size == 0 or ends[-1] != self.count:
            ends = np.append(ends, self.count)
        return ends


def _read_header(path: str) -> tuple[str, int, int | None]:
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise _errors.DataError(
            f"{path}: cannot be read ({error.strerror or error})"
        ) from None
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise _errors.DataError(
            f"{path}: is not a token file (it does not start with "
            f"{_MAGIC.decode()} and a header of {_HEADER_BYTES} bytes); write "
            "one with seqjax.data.write_token_file"
        )
    _, version, width, count, end, _ = _HEADER.unpack_from(header)
    if version != _VERSION or width not in _DTYPES:
        raise _errors.DataError(
            f"{path}: token file of version {version} with {width} bytes per "
            f"id, this release reads version {_VERSION} with 1, 2 or 4"
        )
    if size != _HEADER_BYTES + count * width:
        raise _errors.DataError(
            f"{path}: is truncated or has grown: its header promises {count} "
            f"tokens, {_HEADER_BYTES + count * width} bytes, the file has "
            f"{size} bytes; write it again"
        )
    if count == 0:
        raise _errors.DataError(f"{path}: holds no tokens; write it again")
    return _DTYPES[width], count, None if end < 0 else end


def write_token_file(
    path: str | os.PathLike,
    documents: Iterable[np.ndarray],
    *,
    vocab_size: int,
    end_of_document: int | None = None,
) -> None:
    """Writes documents, each a 1-D integer array, as one token file.

    Args:
      path: where; an existing file is replaced once the new one is whole.
      documents: token ids; consumed one at a time.
      vocab_size: every id is below it; decides the width (1, 2 or 4 bytes).
      end_of_document: id appended to each document, which no document may
        hold itself; without it the file is one long document.

    Raises:
      DataError: an id out of range, a document that holds
        `end_of_document`, or no tokens at all; no file is left behind.
    """
    if not 1 <= vocab_size <= 2**31:
        raise _errors.DataError(
            f"vocab_size must be from 1 to 2**31, got {vocab_size}"
        )
    if end_of_document is not None and not 0 <= end_of_document < vocab_size:
        raise _errors.DataError(
            f"end_of_document must be from 0 to {vocab_size - 1}, got "
            f"{end_of_document}"
        )
    width = 1 if vocab_size <= 2**8 else 2 if vocab_size <= 2**16 else 4
    end = -1 if end_of_document is None else end_of_document
    part = f"{os.fspath(path)}.part"
    count = 0
    try:
        with open(part, "wb") as file:
            file.write(bytes(_HEADER_BYTES))
            for number, document in enumerate(documents):
                tokens = _checked(number, document, vocab_size, end_of_document)
                file.write(tokens.astype(_DTYPES[width]).tobytes())
                count += tokens.size
            if count == 0:
                raise _errors.DataError("documents must hold tokens, got none")
            file.seek(0)
            file.write(
                _HEADER.pack(_MAGIC, _VERSION, width, count, end, vocab_size)
            )
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def _checked(
    number: int, document: np.ndarray, vocab_size: int, end: int | None
) -> np.ndarray:
    tokens = np.asarray(document)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise _errors.DataError(
            f"document {number} must be a 1-D array of integers, got shape "
            f"{tokens.shape} and dtype {tokens.dtype}"
        )
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < (
        vocab_size
    ):
        raise _errors.DataError(
            f"document {number} must hold ids from 0 to {vocab_size - 1}, got "
            f"{int(tokens.min())} to {int(tokens.max())}"
        )
    if end is None:
        return tokens
    if np.any(tokens == end):
        raise _errors.DataError(
            f"document {number} holds the end_of_document id {end} at token "
            f"{int(np.argmax(tokens == end))}; choose an id that no text uses"
        )
    return np.append(tokens, end)
