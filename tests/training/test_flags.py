"""The command line: typed overrides, and messages that help."""

import pytest

from seqjax import data
from seqjax.training import flags
from tests.training.flag_cases import Inner
from tests.training.flag_cases import Outer


def test_overrides_are_typed():
    config = Outer()
    for path, text in (
        ("inner.width", "16"),
        ("inner.pattern", "gla,gla,attention"),
        ("inner.pair", "(3, 4)"),
        ("inner.window", "128"),
        ("inner.rate", "1"),
        ("debug", "true"),
        ("name", "7"),
    ):
        flags.override(config, path, text)
    assert config == Outer(
        Inner(16, ("gla", "gla", "attention"), (3, 4), 128, 1), True, "7"
    )
    flags.override(config, "inner.window", "none")
    assert config.inner.window is None
    flags.override(config, "inner.pattern", "('x',)")
    assert config.inner.pattern == ("x",)


@pytest.mark.parametrize(
    ("path", "text", "parts"),
    [
        ("inner.widht", "3", ["config.inner has no field 'widht'", "'width'"]),
        ("iner.width", "3", ["config has no field 'iner'", "'inner'"]),
        ("INNER.width", "3", ["no field 'INNER'; did you mean 'inner'?"]),
        ("inner.width", "3.5", ["inner.width", "expected int", "'3.5'"]),
        ("inner.width", "true", ["expected int"]),
        ("inner.rate", "fast", ["expected float", "'fast'"]),
        ("debug", "1", ["expected bool"]),
        ("inner.window", "x", ["int | None"]),
        ("inner", "3", ["group of fields", "width"]),
        ("name.first", "3", ["config.name is a plain value"]),
    ],
)
def test_bad_overrides_say_what_is_accepted(path, text, parts):
    with pytest.raises(flags.ConfigError) as error:
        flags.override(Outer(), path, text)
    for part in parts:
        assert part in str(error.value)


def test_values_nested_too_deep():
    # Python's parser gives up in several ways.
    for text in ("(" * 100_000, "-" * 100_000 + "1", "[" * 500 + "]" * 500):
        with pytest.raises(flags.ConfigError, match=r"expected tuple\[int"):
            flags.override(Outer(), "inner.pair", text)


def test_field_names_get_their_path():
    def told(message):
        return flags.with_paths(message, "data", data.DataConfig)

    assert told("path must be a file with source='jsonl'") == (
        "data.path must be a file with data.source='jsonl'"
    )
    assert told(
        "raise batch_size = 3 or set path to one; seed was 1, is 2"
    ) == (
        "raise data.batch_size = 3 or set data.path to one; "
        "data.seed was 1, is 2"
    )
    # What the user wrote, and ordinary words, stay.
    for same in (
        "data.batch_size = 3; the path of a file; check the path",
        "'/path/batch_size' does not exist (at /seed=1/x); 'text_field'",
    ):
        assert told(same) == same


def test_wrong_values_in_a_config_file_are_found():
    config = Outer()
    config.inner.width = "8"
    with pytest.raises(flags.ConfigError, match=r"config\.inner\.width.*int"):
        flags.check_types(config)
    config = Outer()
    config.inner.witdh = 8
    with pytest.raises(flags.ConfigError, match="did you mean 'width'"):
        flags.check_types(config)


def test_config_files(tmp_path):
    good = tmp_path / "good.py"
    good.write_text("from tests.training.flag_cases import Outer as get_config")
    path = tmp_path / "bad.py"
    head = "from tests.training.flag_cases import Inner, Outer\n"
    for text, parts in (
        ("x = 1", ["no get_config()"]),
        ("def get_config():\n  return 3", ["must return a Outer", "int"]),
        (
            head + "def get_config():\n  return Outer(Inner(widht=3))",
            ["bad.py:3", "TypeError", "did you mean 'width'"],
        ),
        ("def get_config(:\n  return 3", ["SyntaxError"]),
    ):
        path.write_text(text)
        with pytest.raises(flags.ConfigError) as error:
            flags.load_config(str(path), Outer)
        for part in parts:
            assert part in str(error.value)
    with pytest.raises(flags.ConfigError, match=r"no such file.*good\.py"):
        flags.load_config(str(tmp_path / "goood.py"), Outer)


def test_overrides_are_taken_out_of_argv():
    rest, overrides = flags.split_overrides(
        ["x", "--config.a.b=1=2", "--config=f", "--config.c", "--noconfig.d"]
    )
    assert rest == ["x", "--config=f"]
    assert overrides == [("a.b", "1=2"), ("c", "true"), ("d", "false")]
    with pytest.raises(flags.ConfigError, match="takes no value"):
        flags.split_overrides(["--noconfig.d=3"])
