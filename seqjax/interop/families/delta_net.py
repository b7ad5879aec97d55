"""DeltaNet of flash-linear-attention (`model_type` delta_net)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    s.only("norm_first", False)
    s.only("use_beta", True)
    s.only("use_output_norm", True)
    s.only("qk_activation", "silu")
    s.only("qk_norm", "l2")
    options = layers.DeltaNetOptions(
        key_expand=s.number("expand_k", 1.0),
        value_expand=s.number("expand_v", 1.0),
        negative_eigenvalues=s.flag("allow_neg_eigval", False),
        conv_width=fla.conv_width(s, True),
        output_gate=s.flag("use_gate", False),
    )
    return fla.config(s, "delta_net", options, heads=s.whole("num_heads"))


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    fla.query_key_value(t, config.delta_net, config, "delta_net")
    t.linear("beta", "b_proj")
    if config.delta_net.output_gate:
        t.linear("gate", "g_proj")
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
