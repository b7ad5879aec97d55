"""A position goes with its data."""

import dataclasses
import json
import shutil

import pytest

from seqjax import data


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    for number, text in enumerate(data.synthetic.documents(12)):
        (folder / f"{number:02}.txt").write_bytes(text)
    return data.DataConfig(
        source="files",
        path=str(folder / "*.txt"),
        sequence_length=32,
        batch_size=4,
        validation_fraction=0.25,
    )


def test_the_same_data_elsewhere_is_the_same(config, tmp_path):
    facts = data.fingerprint(config)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["train_documents"] + facts["validation_documents"] == 12
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    moved = dataclasses.replace(config, path=str(tmp_path / "two" / "*.txt"))
    assert data.fingerprint(moved) == facts
    assert data.fingerprint(dataclasses.replace(config, num_workers=2)) == facts


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", 1),
        ("sequence_length", 16),
        ("batch_size", 2),
        ("pack", False),
    ],
)
def test_a_changed_setting_is_refused_by_name(config, field, value):
    with data.make_train_iterator(config) as batches:
        next(batches)
        state = batches.get_state()
    changed = dataclasses.replace(config, **{field: value})
    with data.make_train_iterator(changed) as batches:
        with pytest.raises(data.DataError) as error:
            batches.set_state(state)
        assert batches.get_state()["next_batch"] == 0
    assert str(error.value) == (
        "the saved data position belongs to other data: "
        f"{field} was {getattr(config, field)!r}, is {value!r}. Restore the "
        "text and settings of that run, or begin another run from its first "
        "batch"
    )


def test_changed_text_is_refused(config, tmp_path):
    before = data.fingerprint(config)
    path = tmp_path / "one" / "00.txt"
    text = bytearray(path.read_bytes())
    text[0] ^= 1
    path.write_bytes(bytes(text))
    after = data.fingerprint(config)
    with pytest.raises(data.DataError, match="_content was [0-9a-f]{12}, is"):
        data.check_fingerprint(before, after)
    path.write_bytes(bytes(text[1:]))
    with pytest.raises(data.DataError, match=r"_tokens was \d+, is \d+"):
        data.check_fingerprint(before, data.fingerprint(config))


def test_where_documents_begin_is_part_of_the_content(tmp_path):
    facts = []
    for number, texts in enumerate([["ab", "cd"], ["abc", "d"]]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
        config = data.DataConfig(
            source="jsonl", path=str(path), validation_fraction=0.0
        )
        facts.append(data.fingerprint(config))
    assert facts[0]["train_tokens"] == facts[1]["train_tokens"]
    assert facts[0]["train_content"] != facts[1]["train_content"]


def test_other_facts_are_differences_too():
    with pytest.raises(data.DataError) as error:
        data.check_fingerprint({"a": 1, "old": 2}, {"a": 1, "new": "x"})
    assert "new was 'absent', is 'x'; old was 2, is 'absent'" in str(
        error.value
    )
