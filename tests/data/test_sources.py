"""Documents out of the library, files and JSONL, and how they are split."""

import json
import os
import pathlib
import sys
import sysconfig

import numpy as np
import pytest

from seqjax import data


def config(**fields):
    fields = {"source": "files", "validation_fraction": 0.0, **fields}
    return data.DataConfig(**fields)


def message(**fields):
    with pytest.raises(data.DataError) as error:
        data.corpus(config(**fields))
    return str(error.value)


def test_stdlib():
    corpus = data.corpus(data.DataConfig())
    train, held_out = corpus.train_documents, corpus.validation_documents
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    # Real, known files are there as they are, each on one side.
    for name in ("argparse.py", "json/decoder.py", "asyncio/base_events.py"):
        assert ((root / name).read_bytes() in train) != (
            (root / name).read_bytes() in held_out
        )
    # Nothing that is not the library itself.
    pytest_source = pathlib.Path(pytest.__file__).read_bytes()
    numpy_source = pathlib.Path(np.__file__).read_bytes()
    assert pytest_source not in train and numpy_source not in held_out
    assert all(train) and all(held_out)
    size, held = sum(map(len, train)), sum(map(len, held_out))
    assert 3e6 < size + held < 3e7
    assert 0.01 < held / (size + held) < 0.1
    assert corpus.split == "by document"
    again = data.corpus(data.DataConfig())
    assert again.train_documents == train
    assert again.validation_documents == held_out


def test_stdlib_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(data.DataError) as error:
        data.corpus(data.DataConfig())
    assert str(error.value) == (
        f"source 'stdlib': no .py files under {tmp_path}; this interpreter "
        "ships its library in another form, give text of your own with "
        "source='files' and path"
    )


def test_paths_patterns_and_lists(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name, text in {
        "b.txt": "bb",
        "a.txt": "a",
        "sub/c.txt": "ccc",
        "sub/deep/d.txt": "dddd",
        "sub/e.md": "eeeee",
        "empty.txt": "",
    }.items():
        (tmp_path / name).write_text(text)

    def read(*parts):
        path = ",".join(str(tmp_path / part) for part in parts)
        return data.corpus(config(path=path)).train_documents

    assert read("a.txt") == [b"a"]
    assert read("*.txt") == [b"a", b"bb"]
    assert read("**/*.txt") == [b"a", b"bb", b"ccc", b"dddd"]
    assert read("sub/*.md", "b.txt") == [b"bb", b"eeeee"]
    # Named twice is read once.
    assert read("a.txt", "*.txt") == [b"a", b"bb"]
    # A file of such a name is a file, not a pattern.
    (tmp_path / "x[1],y.txt").write_text("odd")
    assert read("x[1],y.txt") == [b"odd"]


def test_bytes_are_read_as_they_are(tmp_path):
    content = bytes(range(256)) + b"\r\n\x00\xff"
    (tmp_path / "a.bin").write_bytes(content)
    corpus = data.corpus(config(path=str(tmp_path / "a.bin")))
    assert corpus.train_documents == [content]
    assert bytes(corpus.train[0]) == content


def test_file_errors(tmp_path):
    missing = str(tmp_path / "none.txt")
    assert message(path=missing) == (
        f"path {missing!r} does not exist (looked at {missing}); check the path"
    )
    pattern = str(tmp_path / "*.txt")
    assert message(path=pattern) == (
        f"path {pattern!r} matches no file (looked from {tmp_path}); '**' "
        "matches folders of any depth, '*' what is in one"
    )
    folder = str(tmp_path)
    assert message(path=folder) == (
        f"path {folder!r} is a directory; give a glob pattern such as "
        f"{folder + '/**/*.txt'!r}"
    )
    (tmp_path / "empty.txt").write_text("")
    empty = str(tmp_path / "empty.txt")
    assert message(path=empty) == (
        f"path {empty!r}: the text is empty (1 files, 0 bytes of text); give "
        "files that hold text"
    )
    (tmp_path / "full.txt").write_text("text")
    full = str(tmp_path / "full.txt")
    assert message(path=full, validation_path=empty).startswith(
        f"validation_path {empty!r}: the text is empty"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_unreadable_file():
    # Exists, and reading it fails, for root too.
    assert os.path.exists("/proc/self/mem")
    assert message(path="/proc/self/mem") == (
        "/proc/self/mem: cannot be read (Input/output error); check that the "
        "file exists and that you may read it"
    )


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ["", '{"text": "one\\ntwo", "n": 1}', "  ", '{"text": ""}']
    lines += ['{"text": "\\u00e9\\ud83d\\ude00"}', ""]
    path.write_text("\r\n".join(lines))
    corpus = data.corpus(config(source="jsonl", path=str(path)))
    assert corpus.train_documents == [b"one\ntwo", "é😀".encode()]


@pytest.mark.parametrize(
    "line, text",
    [
        (
            '{"body": "x", "id": 3}',
            "has no field 'text', only 'body', 'id'; set text_field to the "
            "one that holds the text",
        ),
        ("{}", "has no field 'text', only none; set text_field"),
        ('{"text": 3}', "field 'text' must be a string, got int"),
        ('["x"]', "must be a JSON object with a field 'text', got list"),
        ('{"text": "x', "is not JSON (Unterminated string"),
        ('{"text": "\\ud800"}', "field 'text' is no valid Unicode"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path, line, text):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    found = message(source="jsonl", path=str(path))
    assert found.startswith(f"{path}, line 3: {text}")


def test_jsonl_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    found = message(source="jsonl", path=str(path))
    assert found.startswith(f"{path}, line 1: is not JSON ('utf-8' codec")


@pytest.fixture
def folder(tmp_path):
    for number in range(200):
        text = f"document {number} " * (number % 5 + 1)
        (tmp_path / f"{number:03}.txt").write_text(text)
    return tmp_path


def test_split_is_by_file_and_stays_when_files_come(folder):
    fields = {"path": str(folder / "*.txt"), "validation_fraction": 0.2}
    before = data.corpus(config(**fields))
    train, held_out = before.train_documents, before.validation_documents
    assert before.split == "by document"
    everything = [p.read_bytes() for p in sorted(folder.iterdir())]
    assert sorted(train + held_out) == sorted(everything)
    assert 20 < len(held_out) < 60
    (folder / "new.txt").write_text("one more")
    after = data.corpus(config(**fields))
    assert set(train) <= set(after.train_documents)
    assert set(held_out) <= set(after.validation_documents)
    more = data.corpus(config(**{**fields, "validation_fraction": 0.4}))
    assert set(held_out) < set(more.validation_documents)


def test_one_file_holds_out_its_end(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"a" * 90 + b"b" * 10)
    corpus = data.corpus(
        config(path=str(tmp_path / "book.txt"), validation_fraction=0.1)
    )
    assert corpus.train_documents == [b"a" * 90]
    assert corpus.validation_documents == [b"b" * 10]
    assert corpus.split == "the end of every document"


def test_validation_path(folder):
    (folder / "held").write_text("held out")
    corpus = data.corpus(
        config(path=str(folder / "*.txt"), validation_path=str(folder / "held"))
    )
    assert len(corpus.train) == 200
    assert corpus.validation_documents == [b"held out"]
    assert corpus.split == "validation_path"


def test_validation_tokens(folder):
    fields = {"path": str(folder / "*.txt"), "validation_fraction": 0.5}
    everything = data.corpus(config(**fields)).validation_documents
    for limit in (2, 100, 1000, 10**9):
        corpus = data.corpus(config(**fields, validation_tokens=limit))
        held_out = corpus.validation_documents
        assert sum(map(len, held_out)) == min(limit, sum(map(len, everything)))
        # Whole documents but for one.
        assert len(set(held_out) - set(everything)) <= 1


def test_too_little_text_for_validation(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 40)
    assert message(path=str(tmp_path / "a.txt"), validation_fraction=0.02) == (
        "too little text for validation: 1 tokens held out of 40, at least 2 "
        "in a row are needed; give more text or raise validation_fraction = "
        "0.02"
    )
    held_out = tmp_path / "held"
    held_out.write_text("x")
    fields = {"path": str(tmp_path / "a.txt")}
    found = message(**fields, validation_path=str(held_out))
    assert found.endswith(f"give more text in validation_path '{held_out}'")
    found = message(**fields, validation_fraction=0.5, validation_tokens=1)
    assert found.endswith("needed; raise validation_tokens = 1")


def test_a_line_nested_too_deep(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' + "[" * 200_000)
    assert f"{path}, line 2: is not JSON" in message(
        source="jsonl", path=str(path)
    )


def test_synthetic_text_is_text_and_repeatable():
    texts = data.synthetic.documents(20, seed=7)
    assert texts == data.synthetic.documents(20, seed=7)
    assert texts != data.synthetic.documents(20, seed=8)
    assert len(set(texts)) == 20
    for text in texts:
        assert set(text) <= set(b"abcdefghijklmnopqrstuvwxyz .\n")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        data.synthetic.documents(0)
    assert json.dumps(texts[0].decode())


def test_bytes_tokenizer():
    tokens = data.bytes_tokenizer.encode("é a\x00")
    assert tokens.dtype == np.int32 and tokens.tolist() == [195, 169, 32, 97, 0]
    assert data.bytes_tokenizer.decode(tokens) == "é a\x00"
    assert data.bytes_tokenizer.decode(tokens[1:]) == "\ufffd a\x00"
    with pytest.raises(ValueError, match="from 0 to 255, got 256"):
        data.bytes_tokenizer.decode(np.array([1, 256]))
    with pytest.raises(ValueError, match=r"shape \[T\], got \(1, 1\)"):
        data.bytes_tokenizer.decode(np.zeros((1, 1), np.int32))
