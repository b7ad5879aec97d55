"""What a language model of bytes must beat: an n-gram model; and zlib.

    p(c|ab) = w3 n(abc)/n(ab.) + w2 n(bc)/n(b.) + w1 n(c)/n + w0/256

Jelinek & Mercer, "Interpolated estimation of Markov source parameters from
sparse data" (1980): the weights depend on how often the context was seen, and
are fitted by expectation maximisation on a tenth of the training text that
the counts leave out meanwhile.  The final counts are of all training text.
Needs about 400 MB, and a few seconds for 30 MB of text.
"""

from collections.abc import Iterator, Sequence
import zlib

import numpy as np

_BUCKETS = 24  # of the count of a context: 0, 1, 2-3, 4-7, ...
_PART = 10  # every tenth document fits the weights
_FIT_BYTES = 1_000_000  # more do not change 60 * 24 weights' third digit
_ITERATIONS = 15
_PIECE = 2**23  # bytes handled at once


def zlib_bits_per_byte(documents: Sequence[bytes]) -> float:
    """Size of the concatenated documents under zlib level 9, in bits a byte."""
    text = b"".join(documents)
    return 8 * len(zlib.compress(text, 9)) / len(text)


class Trigram:
    """An interpolated byte trigram model.

    Contexts do not reach over the start of a document, and the first byte of
    a document is context only, as it is for a model that reads it to predict
    the second.
    """

    def __init__(self, documents: Sequence[bytes]):
        """Fits counts and weights."""
        fitting = list(documents[::_PART])
        counting = [d for i, d in enumerate(documents) if i % _PART]
        if not counting:
            # A single document: its last tenth fits the weights.
            cut = len(documents[0]) * (_PART - 1) // _PART
            counting, fitting = [documents[0][:cut]], [documents[0][cut:]]
        self._one = np.zeros(256, np.int64)
        self._two = np.zeros(256**2, np.int64)
        self._three = np.zeros(256**3, np.int32)
        self._count(counting)
        self._weights = self._fit(fitting)
        self._count(fitting)

    def bits_per_byte(self, documents: Sequence[bytes]) -> float:
        """Mean bits over all bytes of the documents but their first ones."""
        bits, count = 0.0, 0
        for piece in _pieces(documents):
            probability = self._probability(*self._estimates(piece))
            bits -= float(np.log2(probability).sum())
            count += len(probability)
        return bits / count

    def _probability(
        self, estimates: np.ndarray, buckets: np.ndarray
    ) -> np.ndarray:
        return np.einsum("nk,nk->n", estimates, self._weights[buckets])

    def _count(self, documents: Sequence[bytes]) -> None:
        for a, b, c, has_a in _pieces(documents):
            bc = b * 256 + c
            self._one += np.bincount(c, minlength=256)
            self._two += np.bincount(bc, minlength=256**2)
            abc = (a * 256**2 + bc)[has_a]
            self._three += np.bincount(abc, minlength=256**3).astype(np.int32)
        self._two_sum = self._two.reshape(256, 256).sum(-1)
        self._three_sum = self._three.reshape(256**2, 256).sum(-1)

    def _estimates(
        self, piece: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The four estimates [n, 4] of each byte and its bucket [n]."""
        a, b, c, has_a = piece
        ab, bc = a * 256 + b, b * 256 + c
        seen = np.where(has_a, self._three_sum[ab], 0)
        seen_b = self._two_sum[b]
        estimates = np.empty((len(c), 4))
        estimates[:, 3] = 1 / 256
        estimates[:, 2] = self._one[c] / max(self._one.sum(), 1)
        # A context that was never seen says what the shorter one says, so
        # that the estimates stay distributions.
        two = self._two[bc] / np.maximum(seen_b, 1)
        estimates[:, 1] = np.where(seen_b, two, estimates[:, 2])
        three = self._three[a * 256**2 + bc] / np.maximum(seen, 1)
        estimates[:, 0] = np.where(seen, three, estimates[:, 1])
        # log2(0) is never taken: frexp's exponent of 0 is 0, of 1 is 1.
        buckets = np.minimum(np.frexp(seen)[1], _BUCKETS - 1)
        return estimates, buckets

    def _fit(self, documents: Sequence[bytes]) -> np.ndarray:
        weights = np.full((_BUCKETS, 4), 0.25)
        piece = next(_pieces(documents), None)
        if piece is None:
            return weights
        piece = tuple(part[:_FIT_BYTES] for part in piece)
        estimates, buckets = self._estimates(piece)
        for _ in range(_ITERATIONS):
            shares = estimates * weights[buckets]
            shares /= shares.sum(-1, keepdims=True)
            for k in range(4):
                # A byte's worth shared by all keeps every weight above 0.
                weights[:, k] = 0.25 + np.bincount(
                    buckets, shares[:, k], _BUCKETS
                )
            weights /= weights.sum(-1, keepdims=True)
        return weights


def _pieces(documents: Sequence[bytes]) -> Iterator[tuple[np.ndarray, ...]]:
    """(a, b, c, has_a) for the bytes c that have a byte b before them.

    a is the byte before b, and 0 where has_a is False.
    """
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _PIECE:
            yield _piece(batch)
            batch, size = [], 0
    if any(len(document) > 1 for document in batch):
        yield _piece(batch)


def _piece(documents: list[bytes]) -> tuple[np.ndarray, ...]:
    text = np.frombuffer(b"".join(documents), np.uint8).astype(np.int64)
    lengths = np.array([len(document) for document in documents])
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(text)) - np.repeat(starts, lengths)
    at = np.flatnonzero(place >= 1)
    has_a = place[at] >= 2
    return np.where(has_a, text[at - 2], 0), text[at - 1], text[at], has_a
