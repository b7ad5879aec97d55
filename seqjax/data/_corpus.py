"""The documents of a run, in two parts: to train on and held out.

A document is held out when the hash of its relative name falls below
`validation_fraction`: whole documents, the same ones on every machine,
whatever else the corpus holds. Where that leaves one side empty (a single
book, a handful of files) the last part of every document is held out instead.
"""

import dataclasses
import functools

from absl import logging
import numpy as np

from seqjax.data import _config
from seqjax.data import _documents
from seqjax.data import _errors
from seqjax.data import _sources


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a run reads.

    Attributes:
      train: documents to train on.
      validation: documents held out, after `validation_tokens`.
      split: in words, how the two were parted.
    """

    train: _documents.Documents
    validation: _documents.Documents
    split: str

    @property
    def train_documents(self) -> list[bytes]:
        """The training text, a byte string per document.

        Raises:
          DataError: the corpus is token files.
        """
        return _as_bytes(self.train)

    @property
    def validation_documents(self) -> list[bytes]:
        """The held-out text that validation reads, likewise."""
        return _as_bytes(self.validation)

    @functools.cached_property
    def digests(self) -> tuple[str, str]:
        """Hashes of the training and of the held-out tokens."""
        return self.train.digest(), self.validation.digest()


def _as_bytes(documents: _documents.Documents) -> list[bytes]:
    if not all(isinstance(b, np.ndarray) for b in documents.buffers):
        raise _errors.DataError(
            "a corpus of token files has no bytes; read its documents as "
            "arrays from corpus.train and corpus.validation"
        )
    return [documents[i].tobytes() for i in range(len(documents))]


def corpus(config: _config.DataConfig) -> Corpus:
    """Reads and splits the text of a configuration.

    Raises:
      DataError: a wrong field; a file that is missing, unreadable, empty or
        malformed; nothing left to train on or to hold out.
    """
    config.validate()
    documents = _sources.load(config)
    if config.validation_path:
        held_out = _sources.from_path(config, "validation_path")
        train, split = documents, "validation_path"
    else:
        train, held_out, split = _split(documents, config.validation_fraction)
    if config.validation_tokens:
        held_out = _limit(held_out, config.validation_tokens)
    if split != "nothing held out" and not np.any(held_out.lengths > 1):
        raise _errors.DataError(
            f"too little text for validation: {held_out.tokens} tokens held "
            f"out of {documents.tokens}, at least 2 in a row are needed; "
            + _more_to_validate(config)
        )
    logging.info(
        "corpus: %d documents, %d tokens to train on; %d documents, %d tokens "
        "held out (%s)",
        len(train),
        train.tokens,
        len(held_out),
        held_out.tokens,
        split,
    )
    return Corpus(train, held_out, split)


def _more_to_validate(config: _config.DataConfig) -> str:
    if config.validation_tokens in (1, 2):
        return f"raise validation_tokens = {config.validation_tokens}"
    if config.validation_path:
        return f"give more text in validation_path {config.validation_path!r}"
    return (
        f"give more text or raise validation_fraction = "
        f"{config.validation_fraction}"
    )


def _split(
    documents: _documents.Documents, fraction: float
) -> tuple[_documents.Documents, _documents.Documents, str]:
    nothing = np.zeros(len(documents), bool)
    if fraction == 0.0:
        return documents, documents.select(nothing), "nothing held out"
    # Keys are compared by their upper 53 bits, which a float holds exactly.
    held_out = (documents.keys >> np.uint64(11)) < fraction * 2.0**53
    if held_out.any() and not held_out.all():
        train, validation = documents.select(~held_out), held_out
        return train, documents.select(validation), "by document"
    ends = documents.lengths
    cuts = ends - np.round(ends * fraction).astype(np.int64)
    train = documents.cut(np.zeros_like(ends), cuts)
    return train, documents.cut(cuts, ends), "the end of every document"


def _limit(
    documents: _documents.Documents, tokens: int
) -> _documents.Documents:
    """At most so many tokens, of documents drawn by their keys."""
    drawn = np.argsort(documents.keys, kind="stable")
    before = np.cumsum(documents.lengths[drawn]) - documents.lengths[drawn]
    room = np.zeros_like(documents.lengths)
    room[drawn] = np.clip(tokens - before, 0, documents.lengths[drawn])
    return documents.cut(np.zeros_like(room), room)
