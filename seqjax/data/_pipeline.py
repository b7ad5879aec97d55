"""Batches for training, endless and resumable, and for validation.

Rows of all epochs form one endless list; epoch e orders documents and rows by
(seed, e). Batch g is rows g·B to (g+1)·B - 1 of it, and process p of P reads
rows p·B/P to (p+1)·B/P - 1 of every batch. So a batch is a function of its
number: neither processes nor workers change it, and the state is that number.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from seqjax.data import _config
from seqjax.data import _corpus
from seqjax.data import _documents
from seqjax.data import _errors
from seqjax.data import _fingerprint
from seqjax.data import _order
from seqjax.data import _packing
from seqjax.data import _run_ahead

_STATE_VERSION = 1


class _TrainBatches:
    """Batch number -> batch of one process."""

    def __init__(
        self,
        documents: _documents.Documents,
        config: _config.DataConfig,
        process_index: int,
        process_count: int,
    ):
        self._documents = documents
        self._length = config.sequence_length
        self._batch_size = config.batch_size
        self._pack = config.pack
        self._seed = config.seed
        self._rows = config.batch_size // process_count
        self._first = process_index * self._rows
        self._epochs: dict[int, tuple[_packing.Layout, np.ndarray]] = {}
        self.epoch_rows = self._layout(np.arange(len(documents))).rows

    def __call__(self, number: int) -> _packing.Batch:
        batch = _packing.empty_batch(self._rows, self._length)
        first = int(number) * self._batch_size + self._first
        for row in range(self._rows):
            epoch, place = divmod(first + row, self.epoch_rows)
            layout, rows = self._epoch(epoch)
            pieces = layout.pieces(int(rows[place]))
            _packing.write_row(batch, row, self._documents, pieces)
        return batch

    def _layout(self, order: np.ndarray) -> _packing.Layout:
        lengths = self._documents.lengths
        return _packing.Layout(lengths, order, self._length, self._pack)

    def _epoch(self, epoch: int) -> tuple[_packing.Layout, np.ndarray]:
        made = self._epochs.get(epoch)
        if made is None:
            count = len(self._documents)
            order = _order.permutation(count, self._seed, epoch, "documents")
            layout = self._layout(order)
            rows = _order.permutation(layout.rows, self._seed, epoch, "rows")
            made = layout, rows
            # A batch reaches into one more epoch at most.
            kept = {e: m for e, m in self._epochs.items() if e == epoch - 1}
            self._epochs = {**kept, epoch: made}
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": {}}


class TrainIterator:
    """Endless iterator over the training batches of one process.

    `next` raises DataError for text that has become unreadable, and
    WorkerKilled; the position is then as it was, and `next` may be called
    again.

    A batch is a dict of numpy arrays [b, T] with b = batch_size /
    process_count: "inputs", "targets", "segment_ids" (-1 padding),
    "positions" (from 0 in each segment), all int32, and "weights" float32,
    0 where the target is no token of the same document.

    Close it, or use it in a `with` statement, to end worker processes.
    """

    def __init__(
        self,
        batches: _TrainBatches,
        num_workers: int,
        fingerprint: dict[str, Any],
    ):
        self._batches = batches
        self._num_workers = num_workers
        self._fingerprint = fingerprint
        self._next = 0
        self._running: grain.DatasetIterator | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Rows of T tokens in one pass over the text, over all processes."""
        return self._batches.epoch_rows

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> _packing.Batch:
        try:
            if self._running is None:
                self._running, batch = _run_ahead.start(
                    self._batches, self._next, self._num_workers
                )
            else:
                batch = next(self._running)
        except BaseException as error:
            # Interrupted in the middle, a batch may be lost: start again.
            self.close()
            if _run_ahead.was_killed(error):
                raise _errors.WorkerKilled(
                    f"a worker process that reads data was killed "
                    f"({str(error).split('. ')[0]}); if the machine ran out "
                    f"of memory, lower num_workers = {self._num_workers} or "
                    "set it to 0"
                ) from None
            raise
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the last batch given out: plain JSON values.

        It is the same on every process and for any number of them.
        """
        return {
            "version": _STATE_VERSION,
            "next_batch": self._next,
            "fingerprint": dict(self._fingerprint),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved position; the next batch is the one behind it.

        Raises:
          DataError: no such state, or one of other data; what differs is
            named with both values, and the position stays as it was.
        """
        number = state.get("next_batch") if isinstance(state, dict) else None
        if (
            number is None
            or state.get("version") != _STATE_VERSION
            or type(number) is not int
            or number < 0
            or not isinstance(state.get("fingerprint"), dict)
        ):
            raise _errors.DataError(
                "state must be what get_state returned, with version "
                f"{_STATE_VERSION}, next_batch and fingerprint; got {state!r}"
            )
        _fingerprint.check_fingerprint(state["fingerprint"], self._fingerprint)
        self.close()
        self._next = number

    def close(self) -> None:
        """Ends threads and worker processes; iterating starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __enter__(self) -> "TrainIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ValidationBatches:
    """The held-out text once, in order: iterate it as often as needed.

    Batches are dicts as those of TrainIterator; the last one is filled up
    with rows of padding.
    """

    def __init__(
        self,
        documents: _documents.Documents,
        config: _config.DataConfig,
        process_index: int,
        process_count: int,
    ):
        self._documents = documents
        self._length = config.sequence_length
        self._batch_size = config.batch_size
        self._rows = config.batch_size // process_count
        self._first = process_index * self._rows
        self._layout = _packing.Layout(
            documents.lengths,
            np.arange(len(documents)),
            self._length,
            config.pack,
        )
        self._count = -(-self._layout.rows // config.batch_size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_packing.Batch]:
        for number in range(self._count):
            batch = _packing.empty_batch(self._rows, self._length)
            first = number * self._batch_size + self._first
            last = min(first + self._rows, self._layout.rows)
            for row in range(first, last):
                pieces = self._layout.pieces(row)
                _packing.write_row(batch, row - first, self._documents, pieces)
            yield batch


def make_train_iterator(
    config: _config.DataConfig,
    process_index: int = 0,
    process_count: int = 1,
    *,
    corpus: _corpus.Corpus | None = None,
) -> TrainIterator:
    """The endless, shuffled, resumable batches of one process.

    Args:
      config: the data configuration.
      process_index: which process this is.
      process_count: how many there are; divides `batch_size`.
      corpus: what `corpus(config)` gave, to spare reading it again.

    Raises:
      DataError: see `corpus`; also a batch that does not divide, or text for
        less than one batch.
    """
    corpus = _ready(config, process_index, process_count, corpus)
    batches = _TrainBatches(corpus.train, config, process_index, process_count)
    if batches.epoch_rows < config.batch_size:
        raise _errors.DataError(
            f"too little text for one batch: {corpus.train.tokens} tokens to "
            f"train on make {batches.epoch_rows} rows of sequence_length "
            f"{config.sequence_length}, batch_size {config.batch_size} needs "
            "as many rows; give more text or lower batch_size or "
            "sequence_length"
        )
    facts = _fingerprint.fingerprint(config, corpus=corpus)
    return TrainIterator(batches, config.num_workers, facts)


def make_validation_batches(
    config: _config.DataConfig,
    process_index: int = 0,
    process_count: int = 1,
    *,
    corpus: _corpus.Corpus | None = None,
) -> ValidationBatches:
    """The held-out batches of one process: finite, the same every time.

    Args and errors as `make_train_iterator`.

    Raises:
      DataError: also when the configuration holds nothing out.
    """
    corpus = _ready(config, process_index, process_count, corpus)
    if len(corpus.validation) == 0:
        raise _errors.DataError(
            "nothing is held out to validate on: validation_fraction is 0 and "
            "validation_path is empty; set one of them"
        )
    return ValidationBatches(
        corpus.validation, config, process_index, process_count
    )


def _ready(
    config: _config.DataConfig,
    process_index: int,
    process_count: int,
    corpus: _corpus.Corpus | None,
) -> _corpus.Corpus:
    config.validate()
    if process_count < 1 or not 0 <= process_index < process_count:
        raise _errors.DataError(
            "process_index must be from 0 to process_count - 1, got "
            f"{process_index} of {process_count}"
        )
    if config.batch_size % process_count:
        below = config.batch_size // process_count * process_count
        near = [n for n in (below, below + process_count) if n]
        raise _errors.DataError(
            f"batch_size must be divisible by the {process_count} processes, "
            f"got {config.batch_size}; nearest are "
            f"{' and '.join(map(str, near))}"
        )
    return _corpus.corpus(config) if corpus is None else corpus
