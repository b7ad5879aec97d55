"""Rows hold every token once, with the right neighbours."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from seqjax import data
from seqjax.data import _documents
from seqjax.data import _packing

# Token (d, i) of the test documents is 1000·d + i: each names its place.
LENGTHS = [1, 7, 3, 40, 16, 2, 1, 100, 33, 8]


def numbered_documents(path, lengths):
    data.write_token_file(
        path,
        [1000 * d + np.arange(n) for d, n in enumerate(lengths)],
        vocab_size=65536,
        end_of_document=65535,
    )


def one_epoch(config, epoch=0):
    """All rows of an epoch, dict of [rows, T], in training order."""
    with data.make_train_iterator(config) as batches:
        rows = batches.rows_per_epoch
        first, last = epoch * rows, (epoch + 1) * rows
        batch = config.batch_size
        got = [next(batches) for _ in range(-(-last // batch))]
    return {
        name: np.concatenate([b[name] for b in got])[first:last]
        for name in got[0]
    }


def check_rows(rows, lengths):
    """Each token an input once; targets, weights, ids, positions right."""
    seen = []
    for row in range(len(rows["inputs"])):
        inputs, targets, weights, segments, positions = (
            rows[name][row]
            for name in (
                "inputs",
                "targets",
                "weights",
                "segment_ids",
                "positions",
            )
        )
        real = segments >= 0
        count = int(real.sum())
        # Padding stands at the end and is all zeros.
        assert real[:count].all()
        for name in ("inputs", "targets", "weights", "positions"):
            assert not rows[name][row, count:].any()
        assert (segments[count:] == -1).all()
        previous = None
        for t in range(count):
            # An end-of-document token is the last of the document before it.
            if inputs[t] == 65535:
                document = previous[0] if previous else None
                place = (document, -1)
            else:
                document, at = divmod(int(inputs[t]), 1000)
                place = (document, at)
                seen.append(place)
            starts = previous is None or previous[1] == -1
            if starts:
                assert positions[t] == 0
                assert segments[t] == (segments[t - 1] + 1 if t else 0)
            else:
                assert positions[t] == positions[t - 1] + 1
                assert segments[t] == segments[t - 1]
                assert weights[t - 1] == 1.0 and targets[t - 1] == inputs[t]
            if place[1] == -1:
                assert weights[t] == 0.0 and targets[t] == 0
            else:
                last = place[1] == lengths[document] - 1
                expected = 65535 if last else inputs[t] + 1
                assert weights[t] == 1.0 and targets[t] == expected
            previous = place
    everything = [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    assert sorted(seen) == everything
    ends = int((rows["inputs"] == 65535).sum())
    assert ends == len(lengths)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("length", [1, 5, 16, 64, 300])
@pytest.mark.parametrize("epoch", [0, 2])
def test_every_token_once_with_its_neighbours(tmp_path, pack, length, epoch):
    numbered_documents(tmp_path / "d.tok", LENGTHS)
    config = data.DataConfig(
        source="tokens",
        path=str(tmp_path / "d.tok"),
        vocab_size=65536,
        sequence_length=length,
        batch_size=1 if length == 300 else 3,
        pack=pack,
        validation_fraction=0.0,
        seed=5,
    )
    rows = one_epoch(config, epoch)
    check_rows(rows, LENGTHS)
    total = sum(LENGTHS) + len(LENGTHS)
    if pack:
        # Full rows but for one.
        assert len(rows["inputs"]) == -(-total // length)
        assert (rows["segment_ids"] == -1).sum() == -total % length
    else:
        assert rows["segment_ids"].max() == 0


def test_dtypes_and_shapes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abcdefgh" * 10)
    config = data.DataConfig(
        source="files",
        path=str(tmp_path / "a.txt"),
        sequence_length=8,
        batch_size=4,
        validation_fraction=0.0,
    )
    with data.make_train_iterator(config, 1, 2) as batches:
        batch = next(batches)
    assert {name: str(a.dtype) for name, a in batch.items()} == {
        "inputs": "int32",
        "targets": "int32",
        "weights": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }
    assert {a.shape for a in batch.values()} == {(2, 8)}


def test_a_small_example_by_hand():
    documents = _documents.of_bytes([b"abc", b"", b"d", b"efgh"], np.zeros(4))
    layout = _packing.Layout(documents.lengths, np.array([2, 0, 1]), 3, True)
    assert layout.rows == 3
    batch = _packing.empty_batch(3, 3)
    for row in range(3):
        _packing.write_row(batch, row, documents, layout.pieces(row))
    a, b, c, d, e, f, g, h = b"abcdefgh"
    np.testing.assert_array_equal(
        batch["inputs"], [[e, f, g], [h, a, b], [c, d, 0]]
    )
    np.testing.assert_array_equal(
        batch["targets"], [[f, g, h], [0, b, c], [0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch["weights"], [[1, 1, 1], [0, 1, 1], [0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch["segment_ids"], [[0, 0, 0], [0, 1, 1], [0, 1, -1]]
    )
    np.testing.assert_array_equal(
        batch["positions"], [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    )


@hypothesis.given(
    strategies.lists(strategies.integers(1, 30), min_size=1, max_size=12),
    strategies.integers(1, 20),
    strategies.booleans(),
    strategies.randoms(use_true_random=False),
)
def test_layout_equals_walking_through_the_documents(
    lengths, length, pack, random
):
    order = list(range(len(lengths)))
    random.shuffle(order)
    expected, row, room = [], [], length
    for document in order:
        begin = 0
        while begin < lengths[document]:
            end = min(begin + room, lengths[document])
            row.append((document, begin, end))
            room -= end - begin
            begin = end
            if room == 0 or not pack:
                expected.append(row)
                row, room = [], length
    if row:
        expected.append(row)
    layout = _packing.Layout(np.array(lengths), np.array(order), length, pack)
    assert [layout.pieces(r) for r in range(layout.rows)] == expected
