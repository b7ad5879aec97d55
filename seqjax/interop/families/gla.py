"""GLA of flash-linear-attention (`model_type` gla)."""

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
    s.only("feature_map", None)
    s.only("clamp_min", None)
    s.only("use_gk", True)
    s.only("use_gv", False)
    options = layers.GLAOptions(
        key_expand=s.number("expand_k", 0.5),
        value_expand=s.number("expand_v", 1.0),
        conv_width=fla.conv_width(s, False),
        output_gate=s.flag("use_output_gate", True),
    )
    return fla.config(s, "gla", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    gated = config.gla.output_gate
    fla.query_key_value(t, config.gla, config, "gla")
    t.linear("decay_in", "gk_proj.0")
    t.linear("decay", "gk_proj.1", bias=True)
    if gated:
        t.linear("gate", "g_proj")
    t.norm("norm", fla.gated_norm(s, gated))
    t.linear("out", "o_proj", inputs=2)
