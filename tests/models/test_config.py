"""A wrong config is refused with the field, the value and what is accepted."""

import dataclasses
import pathlib
import re

import pytest

from seqjax import layers
from seqjax import models

ERRORS = {
    "pattern": (
        {"pattern": ("simple_gla", "atention")},
        "nearest is 'attention'",
    ),
    "pattern_empty": ({"pattern": ()}, "at least one of"),
    "pattern_list": ({"pattern": ["gla"]}, r"must be a tuple.*\['gla'\]"),
    "width": (
        {"width": 0},
        "width must be a whole number of at least 1, got 0",
    ),
    "type": ({"repeats": 2.0}, "repeats must be a whole number.*got 2.0"),
    "bool": ({"heads": True}, "heads must be a whole number.*got True"),
    "switch": ({"remat": 1}, "remat must be True or False, got 1"),
    "none": (
        {"head_dim": 0},
        "head_dim must be .* at least 1 or None, got 0",
    ),
    "dtype": ({"dtype": "bf16"}, "dtype must be one of.*nearest is 'bfloat16'"),
    "x64": ({"dtype": "float64"}, "needs jax_enable_x64"),
    "heads": ({"heads": 3}, "multiple of heads, got width=256 and heads=3"),
    "odd": ({"head_dim": 7}, "even head_dim, got 7; set attention.head_dim"),
    "norm": ({"norm": "Layer"}, "norm must be one of.*nearest is 'layer'"),
    "mlps": ({"mlps": ("mlp",)}, r"mlps must be a tuple of one or 4.*'swiglu'"),
    "mlps_two": ({"mlps": ("none", "swiglu")}, "tuple of one or 4"),
    "eps": ({"norm_eps": 0.0}, "norm_eps must be a finite number above 0"),
}

# Of one mixer: the path of the field is in the message.
OPTIONS = {
    "attention.key_value_heads": (
        {"key_value_heads": 3},
        "multiple of attention.key_value_heads, got heads=4 and",
    ),
    "attention.window": (
        {"window": 0},
        "attention.window must be .* at least 1 or None, got 0",
    ),
    "attention.output_gate": (
        {"output_gate": "head"},
        "attention.output_gate must be one of .*nearest is 'headwise'",
    ),
    "lightning.slopes": (
        {"slopes": "tnl"},
        "lightning.slopes must be one of .*nearest is 'tnl_",
    ),
    "lightning.layers": ({"slopes": "tnl_code"}, "at least 2 layers, got 1"),
    "retnet.head_dim": ({"head_dim": 5}, "set retnet.head_dim to an even"),
    "retnet.value_expand": (
        {"value_expand": 1.3},
        "retnet.value_expand times 64 must be a whole number.*=1.3",
    ),
    "mamba2.head_dim": (
        {"head_dim": 100},
        r"multiple of mamba2.head_dim, got 2 \* 256 and 100",
    ),
    "mamba2.groups": ({"groups": 3}, "must divide the number of heads, 8"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name):
    changes, text = ERRORS[name]
    with pytest.raises(ValueError, match=text):
        models.LanguageModelConfig(**changes).validate()


@pytest.mark.parametrize("name", OPTIONS)
def test_options_refused(name):
    changes, text = OPTIONS[name]
    kind = name.partition(".")[0]
    config = models.LanguageModelConfig(pattern=(kind,))
    options = dataclasses.replace(getattr(config, kind), **changes)
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(config, **{kind: options}).validate()


def test_the_prefix_stands_before_the_path():
    config = models.LanguageModelConfig()
    config.attention.window = -1
    with pytest.raises(ValueError, match=r"^model\.attention\.window must be"):
        config.validate("model.")


def test_every_default_is_accepted():
    for name in models.LanguageModelConfig.pattern_names():
        models.LanguageModelConfig(pattern=(name,), repeats=2).validate()
    # Options of mixers that are not in the pattern do not matter.
    models.LanguageModelConfig(pattern=("mamba2",), heads=3).validate()
    models.LanguageModelConfig(
        pattern=("attention",),
        head_dim=7,
        attention=layers.AttentionOptions(rotary_base=None),
    ).validate()


def test_options_are_not_shared_between_configs():
    first, second = models.LanguageModelConfig(), models.LanguageModelConfig()
    first.attention.window = 5
    assert second.attention.window is None


def test_a_field_of_a_subclass_is_a_name_of_the_pattern():
    @dataclasses.dataclass(unsafe_hash=True)
    class Config(models.LanguageModelConfig):
        local: layers.AttentionOptions = dataclasses.field(
            default_factory=lambda: layers.AttentionOptions(window=8)
        )

    assert "local" in Config.pattern_names()
    config = Config(pattern=("local", "attention"))
    config.validate()
    assert models.state_bytes(config, 100)["local"] < 8 * 4 * 256 * 2


def test_the_page_of_layers_lists_every_name():
    page = pathlib.Path(__file__).parents[2] / "docs" / "layers.md"
    table = page.read_text().partition("## Patterns")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert tuple(listed) == models.LanguageModelConfig.pattern_names()


def test_defaults_follow_the_width():
    config = models.LanguageModelConfig(width=100, heads=5, repeats=2)
    assert config.depth == 8
    # 8/3 of 100 is 266.7, rounded up to a multiple of 64.
    assert config.resolved_mlp_width == 320
