"""RetNet of flash-linear-attention (`model_type` retnet)."""

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
    s.only("use_output_gate", True)
    s.only("use_short_conv", False)
    s.ignored("conv_size")
    keys, values = s.positive("expand_k", 1.0), s.positive("expand_v", 2.0)
    options = layers.RetNetOptions(
        head_dim=round(s.whole("hidden_size") * keys / heads),
        value_expand=values / keys,
    )
    return fla.config(s, "retnet", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    for name in ("query", "key", "value", "gate"):
        t.linear(name, f"{name[0]}_proj")
    t.norm("norm", fla.gated_norm(s, True))
    t.linear("out", "o_proj", inputs=2)
