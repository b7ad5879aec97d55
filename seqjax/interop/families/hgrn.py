"""HGRN of flash-linear-attention (`model_type` hgrn)."""

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
    options = layers.HGRNOptions(
        expand=s.number("expand_ratio", 1),
        use_lower_bound=s.flag("use_lower_bound", True),
    )
    return fla.config(s, "hgrn", options)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    names = {"value": "i", "forget": "f", "gate": "g", "out": "o"}
    for ours, theirs in names.items():
        t.linear(ours, f"{theirs}_proj")
    t.norm("norm", "g_norm")
