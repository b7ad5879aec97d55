"""Settings are checked before anything is read."""

import dataclasses
import pickle

import pytest

from seqjax import data


def message(**fields):
    with pytest.raises(data.DataError) as error:
        data.DataConfig(**fields).validate()
    assert isinstance(error.value, ValueError)
    return str(error.value)


def test_defaults_are_valid():
    data.DataConfig().validate()
    data.DataConfig(source="files", path="a", validation_fraction=0).validate()


@pytest.mark.parametrize(
    "fields, text",
    [
        (
            {"source": "json"},
            "source must be one of 'stdlib', 'files', 'jsonl', 'tokens', got "
            "'json'; did you mean 'jsonl'?",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sequence_length": -4}, "sequence_length must be at least 1, got -4"),
        ({"batch_size": "8"}, "batch_size must be of type int, got '8'"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"pack": 1}, "pack must be of type bool, got 1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"seed": 2**63}, f"seed must be below 2**63, got {2**63}"),
        ({"num_workers": -1}, "num_workers must be 0 or more, got -1"),
        (
            {"validation_fraction": 1.0},
            "validation_fraction must be in [0, 1), got 1.0",
        ),
        (
            {"validation_fraction": float("nan")},
            "validation_fraction must be in [0, 1), got nan",
        ),
        (
            {"source": "files"},
            "path must be a file or glob pattern with source='files', got ''",
        ),
        (
            {"path": "a.txt"},
            "path must be empty with source='stdlib', which reads the "
            "interpreter's own library (to read files set source to 'files', "
            "'jsonl' or 'tokens'), got 'a.txt'",
        ),
        (
            {"source": "files", "path": "a", "text_field": "body"},
            "text_field must be left at 'text' with source='files': only "
            "'jsonl' reads it, got 'body'",
        ),
        (
            {"source": "jsonl", "path": "a", "text_field": ""},
            "text_field must be the name of the field that holds the text, "
            "got ''",
        ),
        (
            {"vocab_size": 512},
            "vocab_size must be 256 with source='stdlib', which is read as "
            "bytes, got 512",
        ),
        (
            {"source": "tokens", "path": "a", "vocab_size": 0},
            "vocab_size must be from 1 to 2**31, got 0",
        ),
        (
            {"source": "files", "path": "a", "validation_path": "b"},
            "validation_fraction must be 0 when validation_path gives the "
            "held-out text, got 0.05",
        ),
        (
            {"validation_fraction": 0.0, "validation_tokens": 9},
            "validation_tokens must be 0 when nothing is held out "
            "(validation_fraction is 0 and validation_path is empty), got 9",
        ),
    ],
)
def test_a_wrong_field_is_named(fields, text):
    assert message(**fields) == text


def test_errors_come_before_any_file_is_read():
    config = data.DataConfig(source="files", path="/none", batch_size=0)
    for call in (
        data.corpus,
        data.fingerprint,
        data.make_train_iterator,
        data.make_validation_batches,
    ):
        with pytest.raises(data.DataError, match="batch_size must be"):
            call(config)


def test_fields_are_plain_and_flat():
    # What ml_collections can override from the command line.
    for field in dataclasses.fields(data.DataConfig):
        assert type(field.default) in (str, int, float, bool)


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(data.DataError("why")))
    assert isinstance(error, data.DataError) and str(error) == "why"
