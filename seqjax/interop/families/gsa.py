"""Gated slot attention of flash-linear-attention (`model_type` gsa)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    heads = s.whole("num_heads")
    s.only("num_kv_heads", None, heads)
    s.only("feature_map", "swish")
    s.only("use_norm", True)
    s.only("use_output_gate", False)
    s.only("clamp_min", None)
    s.only("clamp_max", None)
    options = layers.GSAOptions(
        key_expand=s.number("expand_k", 1.0),
        value_expand=s.number("expand_v", 1.0),
        slots=s.whole("num_slots", 64),
        gate_normalizer=s.number("gate_logit_normalizer", 8),
        conv_width=fla.conv_width(s, False),
        eps=1e-5,  # that of its inner norm is not a setting
    )
    return fla.config(s, "gsa", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    fla.query_key_value(t, config.gsa, config, "gsa")
    t.linear("decay", "f_proj")
    t.norm("norm", "g_norm")
    t.linear("out", "o_proj", inputs=2)
