"""Linear attention of flash-linear-attention (`model_type` linear_attn)."""

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
    s.only("norm_q", False)
    s.only("norm_k", False)
    maps: dict[str, Any] = {"elementwise_product": "hadamard"} | {
        name: name for name in ("elu", "relu", "identity")
    }
    options = layers.LinearAttentionOptions(
        key_expand=s.number("expand_k", 1.0),
        value_expand=s.number("expand_v", 1.0),
        feature_map=maps[s.only("feature_map", *maps)],
        normalize=s.flag("norm_feature_map", False),
    )
    s.only("tie_feature_map_qk", False)
    return fla.config(s, "linear_attention", options, heads=heads)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    for name in ("query", "key", "value"):
        t.linear(name, f"{name[0]}_proj")
    if config.linear_attention.feature_map == "hadamard":
        for name in ("query", "key"):
            inner = t.under(f"{name}_map/", f"feature_map_{name[0]}.")
            for ours, theirs in (("", "layer1"), ("second_", "layer2")):
                inner.same(f"{ours}weight", f"{theirs}.weight")
                inner.same(f"{ours}bias", f"{theirs}.bias")
    t.norm("norm", "norm")
    t.linear("out", "o_proj", inputs=2)
