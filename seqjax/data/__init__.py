"""Text as batches: sources, packing, endless resumable iteration.

config = data.DataConfig(source="stdlib", sequence_length=256)
with data.make_train_iterator(config) as batches:
    batch = next(batches)       # "inputs", "targets", "weights", ...
"""

from seqjax.data import bytes_tokenizer
from seqjax.data import synthetic
from seqjax.data._config import DataConfig
from seqjax.data._corpus import Corpus
from seqjax.data._corpus import corpus
from seqjax.data._documents import Documents
from seqjax.data._errors import DataError
from seqjax.data._errors import WorkerKilled
from seqjax.data._fingerprint import check_fingerprint
from seqjax.data._fingerprint import fingerprint
from seqjax.data._pipeline import TrainIterator
from seqjax.data._pipeline import ValidationBatches
from seqjax.data._pipeline import make_train_iterator
from seqjax.data._pipeline import make_validation_batches
from seqjax.data._token_file import write_token_file

__all__ = [
    "Corpus",
    "DataConfig",
    "DataError",
    "Documents",
    "TrainIterator",
    "ValidationBatches",
    "WorkerKilled",
    "bytes_tokenizer",
    "check_fingerprint",
    "corpus",
    "fingerprint",
    "make_train_iterator",
    "make_validation_batches",
    "synthetic",
    "write_token_file",
]
