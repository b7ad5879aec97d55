"""Comba of flash-linear-attention (`model_type` comba)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    options = layers.CombaOptions(
        head_dim=s.whole("head_dim", 256),
        value_expand=s.number("expand_v", 2.0),
        value_heads=s.whole_or_none("num_v_heads"),
        conv_width=fla.conv_width(s, True),
        inner_decay=s.flag("use_inner_decay", True),
        output_correction=s.flag("use_output_correction", True),
        correction_factor=s.number("correction_factor", 1.0),
        output_gate=s.flag("use_output_gate", True),
    )
    return fla.config(s, "comba", options, heads=s.whole("num_heads"))


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    options = config.comba
    fla.query_key_value(t, options, config, "comba")
    t.linear("beta", "b_proj")
    fla.step_decay(t)
    if options.inner_decay:
        t.same("inner_decay", "decay")
    if options.output_correction:
        t.same("D", "D")
    if options.output_gate:
        t.linear("gate", "g_proj")
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
