"""Gated DeltaNet of flash-linear-attention (`model_type` gated_deltanet)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    s.only("output_gate_activation", "swish", "silu")
    options = layers.GatedDeltaNetOptions(
        head_dim=s.whole("head_dim", 256),
        value_expand=s.number("expand_v", 2.0),
        value_heads=s.whole_or_none("num_v_heads"),
        negative_eigenvalues=s.flag("allow_neg_eigval", False),
        conv_width=fla.conv_width(s, True),
        output_gate=s.flag("use_gate", True),
    )
    return fla.config(s, "gated_delta_net", options, heads=s.whole("num_heads"))


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    fla.query_key_value(t, config.gated_delta_net, config, "gated_delta_net")
    t.linear("beta", "b_proj")
    fla.step_decay(t)
    if config.gated_delta_net.output_gate:
        t.linear("gate", "g_proj")
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
