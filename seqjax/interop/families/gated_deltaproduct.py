"""Gated DeltaProduct of flash-linear-attention (`gated_deltaproduct`)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    options = layers.GatedDeltaProductOptions(
        head_dim=s.whole("head_dim", 256),
        value_expand=s.number("expand_v", 2.0),
        value_heads=s.whole_or_none("num_v_heads"),
        negative_eigenvalues=s.flag("allow_neg_eigval", False),
        conv_width=fla.conv_width(s, True),
        writes=s.whole("num_householder", 1),
        decay=s.flag("use_forget_gate", True),
        output_gate=s.flag("use_output_gate", True),
    )
    heads = s.whole("num_heads")
    return fla.config(s, "gated_delta_product", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    options = config.gated_delta_product
    fla.query_key_value(t, options, config, "gated_delta_product")
    t.linear("beta", "b_proj")
    if options.decay:
        fla.step_decay(t)
    if options.output_gate:
        t.linear("gate", "g_proj")
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
