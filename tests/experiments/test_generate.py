"""The generation command: prompts, streams, stop strings, what it refuses."""

import json
import os
import subprocess
import sys
import types
import unittest.mock

import numpy as np
import pytest

from experiments import generate
from experiments import opened
from experiments import texts
from tests import _tree
from tests.interop import changed

MODELS = "tests/golden/models"
GLA = f"{MODELS}/gla"


def run(*options, code=0):
    """Output and messages of the command."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(
            [str(_tree.ROOT), str(_tree.ROOT / "kernels")]
        ),
    }
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.generate", *options],
        cwd=_tree.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_golden_text_and_constant_memory():
    with np.load(_tree.ROOT / GLA / "golden.npz") as golden:
        length = int(golden["gen_prompt_len"])
        prompts = golden["input_ids"][:, :length].tolist()
        expected = golden["gen_ids"].tolist()
    said = [" ".join(map(str, row)) for row in expected]
    out, messages = run(
        f"--checkpoint={GLA}",
        "--tokens=ids",
        *(f"--prompt={' '.join(map(str, row))}" for row in prompts),
        "--prompt=5 6",
        "--max_new_tokens=16",
        "--ignore_eos",
        "--verbose",
    )
    lines = sorted(out.splitlines())
    assert lines[:2] == [f"[1] {said[0]}", f"[2] {said[1]}"]
    assert len(lines) == 3 and len(lines[2].split()) == 17
    held = [
        line.split("holds")[1]
        for line in messages.splitlines()
        if "the state holds" in line
    ]
    assert len(held) == 3 and len(set(held)) == 1
    assert "whatever the length" in messages and "tokens/s" in messages


@pytest.mark.slow
def test_one_message_for_bad_input():
    out, messages = run(f"--checkpoint={GLA}", "--prompt=x", code=2)
    assert out == "" and messages.count("error: ") == 1
    assert "has no tokenizer.json; pass --tokens=bytes" in messages
    options = "--prompt=1", "--tokens=ids", "--stop="
    _, messages = run(f"--checkpoint={GLA}", *options, code=2)
    assert messages == "error: --stop must be a string that is not empty\n"


def test_other_bad_input(tmp_path):
    nothing = types.SimpleNamespace(prompt=[], prompts=None)
    with pytest.raises(ValueError, match="give --prompt=TEXT, or --prompts"):
        generate.prompts_of(nothing)
    with pytest.raises(ValueError, match="dtype must be one of.*'float8'"):
        opened.open_folder(str(tmp_path), "float8")
    with pytest.raises(ValueError, match="must hold model.safetensors"):
        opened.open_folder(str(tmp_path), None)
    with pytest.raises(ValueError, match="prompt 1 has token 97, but the"):
        generate.pad([[1, 97]], 97)
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ValueError, match=r"pip install 'seqjax\[text\]'"):
        with unittest.mock.patch.dict(sys.modules, {"tokenizers": None}):
            texts.codec("auto", tmp_path, False)


def test_padding_on_the_left():
    rows = generate.pad([[1, 2, 3], [4]], 5)
    np.testing.assert_array_equal(rows.tokens, [[1, 2, 3], [0, 0, 4]])
    np.testing.assert_array_equal(rows.segment_ids, [[0, 0, 0], [-1, -1, 0]])
    with pytest.raises(ValueError, match="prompt 2 must hold a token"):
        generate.pad([[1], []], 5)


def fed(stream, text, size):
    """What a stream lets out of bytes that come `size` at a time."""
    data = np.frombuffer(text.encode(), np.uint8)
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return [stream.feed(part, part is parts[-1]) for part in parts]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_streams_hold_back_what_is_not_certain(size):
    codec = texts.Bytes()
    text = "für a\n\nb stop"
    assert codec.encode("ü") == [195, 188]
    stream = texts.Stream(codec.decoder(), [])
    assert "".join(fed(stream, text, size)) == text == stream.text
    assert "\ufffd" not in stream.text
    stream = texts.Stream(codec.decoder(), ["\n\n", "stop"])
    out = fed(stream, text, size)
    assert "".join(out) == "für a" and stream.stopped
    stream = texts.Stream(codec.decoder(), ["stopped"])
    assert "".join(fed(stream, text, size)) == text and not stream.stopped


def test_ids_and_a_stop_string_among_them():
    codec = texts.Ids()
    assert codec.encode("3, 1 4") == [3, 1, 4]
    with pytest.raises(ValueError, match="token ids such as"):
        codec.encode("three")
    stream = texts.Stream(codec.decoder(), [" 12"])
    out = [stream.feed(np.array(part)) for part in ([3, 1], [1], [12, 5])]
    assert "".join(out) == "3 1 1" and stream.stopped


class Merged:
    """A tokenizer whose tokens are parts of characters and of words."""

    def decode(self, tokens):
        data = b"".join(
            [b"\xc3", b"\xbc", b" a", b"b", b" c"][t] for t in tokens
        )
        return data.decode("utf-8", "replace").lstrip()


def test_tokens_that_share_a_character():
    tokens = [2, 3, 0, 1, 4, 4]
    decoder = texts.TokenizerDecoder(Merged())
    out = [decoder.feed([t], i == 5) for i, t in enumerate(tokens)]
    assert "".join(out) == Merged().decode(tokens) == "abü c c"
    assert out[2] == ""


def test_text_goes_on_from_the_prompt():
    decoder = texts.TokenizerDecoder(Merged(), [2, 3])
    assert decoder.feed([4], False) == " c"  # and not "c"
    # What is no character at all is not waited for.
    out = [decoder.feed([0], False) for _ in range(9)]
    assert out[3] == "" and "\ufffd" in "".join(out)


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts"
    path.write_bytes("ü\u2028b\n\nc\n".encode())
    given = types.SimpleNamespace(prompt=["a"], prompts=str(path))
    assert generate.prompts_of(given) == ["a", "ü\u2028b", "", "c"]


def test_tokens_that_end_a_text(tmp_path):
    folder = changed.copy(tmp_path, eos_token_id=2, max_position_embeddings=7)
    said = {"eos_token_id": [3, 2, 97, None]}
    (folder / "generation_config.json").write_text(json.dumps(said))
    found = opened.open_folder(str(folder), None)
    assert found.stop_tokens == (2, 3) and found.longest == 7
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(ValueError, match="generation_config.json is damaged"):
        opened.open_folder(str(folder), None)
