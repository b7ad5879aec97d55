"""Configurations that cannot run are refused before a device is touched."""

import runpy

import pytest

from seqjax import layers
from seqjax.training import config as config_lib
from seqjax.training import flags
from tests import _tree
from tests.training import tiny


@pytest.mark.parametrize(
    ("path", "text", "parts"),
    [
        ("steps", "0", ["steps must be at least 1, got 0"]),
        ("steps", "-5", ["steps must be at least 1, got -5"]),
        ("accumulation", "0", ["accumulation must be at least 1"]),
        (
            "accumulation",
            "3",
            ["batch_size = 8", "accumulation = 3;", "6 or 9"],
        ),
        ("nonfinite", "ignore", ['"stop" or "skip"', "'ignore'"]),
        ("seed", "-1", ["seed must be in [0, 2**31), got -1"]),
        ("optimizer.learning_rate", "0", ["learning_rate must be positive"]),
        ("optimizer.b2", "1", ["optimizer.b2 must be in [0, 1), got 1"]),
        ("optimizer.warmup_steps", "12", ["less than steps = 12, got 12"]),
        (
            "optimizer.weight_decay",
            "-1",
            ["must not be negative or infinite, got -1"],
        ),
        ("optimizer.final_fraction", "2", ["must be in [0, 1], got 2"]),
        (
            "mesh.seq",
            "3",
            ["= 16 is not divisible by mesh.seq = 3", "15 or 18"],
        ),
        (
            "mesh.seq",
            "8",
            [
                "leaves 2 of 16 tokens",
                "model.simple_gla looks 3 tokens back",
                "mesh.seq to 4",
                "at least 24",
            ],
        ),
        ("mesh.exchange", "star", ["mesh.exchange must be one of", "'ring'"]),
        (
            "mesh.data",
            "16",
            ["divisible by 16 = 16 devices", "batch_size to 16"],
        ),
        ("checkpoint.keep", "0", ["checkpoint.keep must be at least 1"]),
        ("profile.steps", "5", ['must be "first:last"', "'5'"]),
        ("profile.steps", "9:5", ['must be "first:last"', "'9:5'"]),
        (
            "model.pattern",
            "GLA,attention",
            ["'GLA'", "nearest is 'gla'"],
        ),
        ("model.heads", "3", ["model.width must", "model.heads=3"]),
        ("model.dtype", "float31", ["float31", "float32"]),
        ("model.vocab_size", "100", ["at least data.vocab_size = 256"]),
        ("data.source", "Files", ["data.source must", "did you mean 'files'?"]),
        ("data.path", "", ["data.path must be", "data.source='files'"]),
        ("data.source", "file", ["'file'", "did you mean 'files'?"]),
        ("data.sequence_length", "0", ["sequence_length must be at least 1"]),
        ("data.validation_fraction", "0", ["nothing to validate on"]),
    ],
)
def test_bad_values(path, text, parts):
    config = tiny.get_config()
    flags.override(config, path, text)
    flags.check_types(config)
    with pytest.raises(flags.ConfigError) as error:
        config.validate()
    for part in parts:
        assert part in str(error.value)


def test_what_cannot_shard_time(monkeypatch):
    config = tiny.get_config()
    config.mesh.seq = 2
    config.validate()
    config.debug = True
    with pytest.raises(flags.ConfigError, match="mesh.seq must be 1, got 2"):
        config.validate()
    config.debug = False
    monkeypatch.setattr(layers.SimpleGLAOptions, "shards_time", False)
    with pytest.raises(
        flags.ConfigError,
        match="mesh.seq = 2 .* model.simple_gla has no sequence-parallel form",
    ):
        config.validate()


def test_the_batch_on_the_devices():
    config = tiny.get_config()
    config.check_devices(8)
    with pytest.raises(flags.ConfigError, match="batch_size to 6 or 12"):
        config.check_devices(6)
    config.accumulation = 2
    with pytest.raises(flags.ConfigError, match="16 = 8 devices .* = 2; .* 16"):
        config.check_devices(8)


def test_dtype_auto():
    config = tiny.get_config()
    config.model.dtype = "auto"
    config.validate()
    assert config.resolved_model("bfloat16").dtype == "bfloat16"
    config.model.dtype = "float32"
    assert config.resolved_model("bfloat16").dtype == "float32"


def test_free_fields_exist():
    resolved = config_lib.to_dict(tiny.get_config())
    for path in config_lib.FREE_FIELDS:
        holder = resolved
        for name in path.split("."):
            holder = holder[name]


def test_shipped_configs_are_valid():
    for path in sorted((_tree.ROOT / "experiments/configs").glob("*.py")):
        if path.name == "__init__.py":
            continue
        config = flags.load_config(str(path), config_lib.TrainConfig)
        flags.check_types(config)
        config.validate()
        text = runpy.run_path(str(path))["__doc__"]
        for word in ("python -m experiments.train", "core", "bits/byte"):
            assert word in text, f"{path}: the docstring does not say {word!r}"
