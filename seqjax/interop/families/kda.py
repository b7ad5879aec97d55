"""Kimi Delta Attention of flash-linear-attention (`model_type` kda)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    heads = s.whole("num_heads")
    s.only("num_v_heads", None, heads)
    floor = None
    if s.flag("safe_gate", False):
        floor = s.number("lower_bound")
    else:
        s.only("lower_bound", None)
    options = layers.KDAOptions(
        head_dim=s.whole("head_dim", 128),
        value_expand=s.number("expand_v", 1.0),
        negative_eigenvalues=s.flag("allow_neg_eigval", False),
        conv_width=fla.conv_width(s, True),
        floor=floor,
    )
    return fla.config(s, "kda", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    fla.query_key_value(t, config.kda, config, "kda")
    t.linear("beta", "b_proj")
    t.linear("decay/inner", "f_proj.0")
    t.linear("decay/step", "f_proj.1")
    t.flat("decay/bias", "dt_bias")
    t.same("decay/A_log", "A_log")
    t.linear("gate_in", "g_proj.0")
    t.linear("gate", "g_proj.1", bias=True)
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
