"""A wrong config is refused with the field, the value and what is accepted."""

import pytest

from seqjax import models

ERRORS = {
    "pattern": ({"pattern": ("gla", "atention")}, "nearest is 'attention'"),
    "pattern_empty": ({"pattern": ()}, "at least one of"),
    "pattern_list": ({"pattern": ["gla"]}, r"must be a tuple.*\['gla'\]"),
    "width": (
        {"width": 0},
        "width must be a whole number of at least 1, got 0",
    ),
    "type": ({"repeats": 2.0}, "repeats must be a whole number.*got 2.0"),
    "bool": ({"heads": True}, "heads must be a whole number.*got True"),
    "switch": ({"remat": 1}, "remat must be True or False, got 1"),
    "none": ({"window": 0}, "window must be .* at least 1 or None, got 0"),
    "dtype": ({"dtype": "bf16"}, "dtype must be one of.*nearest is 'bfloat16'"),
    "x64": ({"dtype": "float64"}, "needs jax_enable_x64"),
    "heads": ({"heads": 3}, "multiple of heads, got width=256 and heads=3"),
    "grouped": (
        {"key_value_heads": 3},
        "multiple of key_value_heads, got heads=4 and key_value_heads=3",
    ),
    "odd": ({"head_dim": 7}, "even head_dim, got 7"),
    "rotary": (
        {"pattern": ("retnet",), "rotary_base": None},
        "rotary_base must be a number where the pattern has retnet",
    ),
    "slopes": ({"slopes": "tnl"}, "slopes must be one of .*nearest is 'tnl_"),
    "one_layer": (
        {"pattern": ("lightning",), "slopes": "tnl_code"},
        "at least 2 layers, got 1",
    ),
    "gate": (
        {"output_gate": "head"},
        "output_gate must be one of .*nearest is 'headwise'",
    ),
    "mamba2": (
        {"pattern": ("mamba2",), "mamba2_head_dim": 100},
        r"multiple of mamba2_head_dim, got 2 \* 256 and 100",
    ),
    "groups": (
        {"pattern": ("mamba2",), "mamba2_groups": 3},
        "divide the number of mamba2 heads, 8",
    ),
    "eps": ({"norm_eps": 0.0}, "norm_eps must be a finite number above 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name):
    changes, text = ERRORS[name]
    with pytest.raises(ValueError, match=text):
        models.LanguageModelConfig(**changes).validate()


def test_accepted():
    models.LanguageModelConfig().validate()
    # Options of mixers that are not in the pattern do not matter.
    models.LanguageModelConfig(
        pattern=("mamba2",), heads=3, rotary_base=None
    ).validate()
    models.LanguageModelConfig(
        pattern=("attention",), rotary_base=None, head_dim=7
    ).validate()


def test_defaults_follow_the_width():
    config = models.LanguageModelConfig(width=100, heads=5, repeats=2)
    assert config.depth == 8
    assert config.resolved_head_dim == 20
    assert config.resolved_key_value_heads == 5
    # 8/3 of 100 is 266.7, rounded up to a multiple of 64.
    assert config.resolved_mlp_width == 320
