"""HGRN2 of flash-linear-attention (`model_type` hgrn2)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    s.only("use_short_conv", False)
    s.ignored("conv_size")
    width = s.whole("hidden_size")
    # Keys are as wide as expand_ratio; either number follows from the other.
    keys = s.whole("expand_ratio", 128)
    heads = s.whole("num_heads", max(width // keys, 1))
    options = layers.HGRN2Options(
        head_dim=keys,
        value_expand=width / heads / keys,
        use_lower_bound=s.flag("use_lower_bound", True),
        eps=1e-5,  # that of its inner norm is not a setting
    )
    return fla.config(s, "hgrn2", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    for ours, theirs in (("query", "q"), ("forget", "f"), ("value", "i")):
        t.linear(ours, f"{theirs}_proj")
    t.norm("norm", "g_norm")
    t.linear("out", "o_proj", inputs=2)
