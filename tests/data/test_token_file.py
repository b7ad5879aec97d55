"""Token files: the format, and what is wrong with a broken one."""

import pickle
import struct

import numpy as np
import pytest

from seqjax import data
from seqjax.data import _token_file


def corpus(path, vocab_size, **fields):
    fields = {"validation_fraction": 0.0, **fields}
    return data.corpus(
        data.DataConfig(
            source="tokens", path=str(path), vocab_size=vocab_size, **fields
        )
    )


def message(path, vocab_size=256):
    with pytest.raises(data.DataError) as error:
        corpus(path, vocab_size)
    return str(error.value)


@pytest.mark.parametrize(
    "vocab_size, width", [(256, 1), (257, 2), (65536, 2), (65537, 4)]
)
def test_layout_of_the_file(tmp_path, vocab_size, width):
    path = tmp_path / "a.tok"
    data.write_token_file(
        path,
        [[vocab_size - 1, 1], np.zeros(0), [2, 3]],
        vocab_size=vocab_size,
        end_of_document=9,
    )
    raw = path.read_bytes()
    assert struct.unpack("<8sIIQqI", raw[:36]) == (
        b"SEQJAXTK",
        1,
        width,
        7,
        9,
        vocab_size,
    )
    assert raw[36:64] == bytes(28)
    tokens = np.frombuffer(raw[64:], f"<u{width}")
    assert tokens.tolist() == [vocab_size - 1, 1, 9, 9, 2, 3, 9]
    documents = corpus(path, vocab_size).train
    assert [list(documents[i]) for i in range(len(documents))] == [
        [vocab_size - 1, 1, 9],
        [9],
        [2, 3, 9],
    ]
    assert sorted(tmp_path.iterdir()) == [path]


def test_without_an_end_it_is_one_document(tmp_path):
    data.write_token_file(tmp_path / "a.tok", [[1, 2], [3]], vocab_size=4)
    documents = corpus(tmp_path / "a.tok", 4).train
    assert [documents[0].tolist()] == [[1, 2, 3]]


def test_documents_across_the_blocks_of_a_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(_token_file, "_BLOCK", 3)
    for lengths in ([1, 2, 3, 4], [3, 3], [8], [2, 0, 0, 5]):
        path = tmp_path / "a.tok"
        data.write_token_file(
            path,
            [np.full(n, 1) for n in lengths],
            vocab_size=8,
            end_of_document=7,
        )
        documents = corpus(path, 8).train
        assert documents.lengths.tolist() == [n + 1 for n in lengths]


def test_several_files_and_bytes_refused(tmp_path):
    data.write_token_file(tmp_path / "b.tok", [[3, 4]], vocab_size=9)
    data.write_token_file(tmp_path / "a.tok", [[1]], vocab_size=999)
    found = corpus(tmp_path / "*.tok", 9)
    assert [found.train[i].tolist() for i in (0, 1)] == [[1], [3, 4]]
    with pytest.raises(data.DataError, match="token files has no bytes"):
        found.train_documents  # noqa: B018


def test_pickles_as_a_path(tmp_path):
    path = tmp_path / "a.tok"
    data.write_token_file(path, [np.arange(10**6) % 7], vocab_size=7)
    tokens = _token_file.TokenFile(str(path))
    assert tokens[5:8].tolist() == [5, 6, 0]
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[5:8].tolist() == [5, 6, 0]


def test_token_beyond_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(_token_file, "_BLOCK", 2)
    path = tmp_path / "a.tok"
    data.write_token_file(path, [[1, 2, 3, 300, 400]], vocab_size=500)
    assert message(path, 300) == (
        f"{path}: token 3 is id 300, at or above vocab_size 300; raise "
        "vocab_size or write the file with the tokenizer of the model"
    )


def test_broken_files(tmp_path):
    path = tmp_path / "a.tok"
    data.write_token_file(path, [[1, 2, 3]], vocab_size=300)
    whole = path.read_bytes()

    path.write_bytes(whole[:-1])
    assert message(path, 300) == (
        f"{path}: is truncated or has grown: its header promises 3 tokens, 70 "
        "bytes, the file has 69 bytes; write it again"
    )
    for content in (b"", whole[:40], b"\x00" + whole[1:]):
        path.write_bytes(content)
        assert message(path, 300) == (
            f"{path}: is not a token file (it does not start with SEQJAXTK "
            "and a header of 64 bytes); write one with "
            "seqjax.data.write_token_file"
        )
    path.write_bytes(whole[:8] + b"\x02" + whole[9:])
    assert message(path, 300) == (
        f"{path}: token file of version 2 with 2 bytes per id, this release "
        "reads version 1 with 1, 2 or 4"
    )
    path.write_bytes(whole[:16] + bytes(8) + whole[24:64])
    assert message(path, 300) == f"{path}: holds no tokens; write it again"


@pytest.mark.parametrize(
    "documents, fields, text",
    [
        (
            [[1], [2, 5]],
            {"vocab_size": 5},
            "document 1 must hold ids from 0 to 4, got 2 to 5",
        ),
        (
            [[-1]],
            {"vocab_size": 5},
            "document 0 must hold ids from 0 to 4, got -1 to -1",
        ),
        (
            [[1, 0]],
            {"vocab_size": 5, "end_of_document": 0},
            "document 0 holds the end_of_document id 0 at token 1; choose an "
            "id that no text uses",
        ),
        (
            [[1.5]],
            {"vocab_size": 5},
            "document 0 must be a 1-D array of integers, got shape (1,) and "
            "dtype float64",
        ),
        ([], {"vocab_size": 5}, "documents must hold tokens, got none"),
        ([], {"vocab_size": 0}, "vocab_size must be from 1 to 2**31, got 0"),
        (
            [],
            {"vocab_size": 5, "end_of_document": 5},
            "end_of_document must be from 0 to 4, got 5",
        ),
    ],
)
def test_what_cannot_be_written_leaves_no_file(
    tmp_path, documents, fields, text
):
    with pytest.raises(data.DataError) as error:
        data.write_token_file(tmp_path / "a.tok", documents, **fields)
    assert str(error.value) == text
    assert not list(tmp_path.iterdir())
