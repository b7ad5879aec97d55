"""OLMo Hybrid of transformers (`model_type` olmo_hybrid).

Layers of Gated DeltaNet have their norms before what they do, layers of softmax
attention after it.  The three convolutions are one in the other project, whose
`save_pretrained` cuts it into three equal parts whatever belongs to queries,
keys and values; published files have them apart.
"""

import dataclasses
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import fla

_KINDS = {
    "linear_attention": "gated_delta_net",
    "full_attention": "attention",
}
_INITIAL = ("a_log_max", "a_log_min", "dt_init_floor", "dt_max", "dt_min")
# Layout of the published files.
_APART = "convolutions apart"


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    s.only("hidden_act", "silu")
    s.only("attention_bias", False)
    s.only("linear_use_gate", True)
    s.ignored("attention_dropout", *(f"linear_{name}" for name in _INITIAL))
    key_heads = s.whole("linear_num_key_heads", heads)
    key_dim = s.whole("linear_key_head_dim", int(0.75 * width / key_heads))
    delta_net = common.delta_net(
        s,
        key_heads=heads,
        value_heads=heads,
        key_dim=key_dim,
        value_dim=2 * key_dim,
    )
    delta_net = dataclasses.replace(
        delta_net,
        eps=1e-5,
        negative_eigenvalues=s.flag("linear_allow_neg_eigval", True),
    )
    default = common.every(depth, 4)
    kinds = common.layer_types(s, _KINDS, default)
    head_dim = s.whole("head_dim", width // heads)
    # Without a base, as published, there are no positions.
    rotary: dict[str, Any] = {"rotary_base": None}
    said = s.group("rope_parameters")
    if said is not None and said.get("rope_theta", None) is not None:
        rotary = common.rotary(s, head_dim)
    s.only("rope_theta", None)
    layout = ""
    if "gated_delta_net" in kinds:
        first = kinds.index("gated_delta_net")
        keys = f"model.layers.{first}.linear_attn.k_conv1d.weight"
        shape = s.shape(keys)
        if shape is not None and shape[:1] == (key_heads * key_dim,):
            layout = _APART
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-6),
        gated_delta_net=delta_net,
        attention=layers.AttentionOptions(
            head_dim=head_dim,
            key_value_heads=s.whole("num_key_value_heads", heads),
            qk_norm=True,
            full_width_norm=True,
            **rotary,
        ),
        layout=layout,
        **common.pattern(
            kinds,
            norm_places={"gated_delta_net": "before", "attention": "after"},
        ),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    for _, kind, block in t.layers(config, "model.layers.{}."):
        if kind == "attention":
            inner = block.under("mixer/", "self_attn.")
            common.attention(inner)
            inner.norm("query_norm", "q_norm")
            inner.norm("key_norm", "k_norm")
            # Named after what the other kind of layer has in its place.
            block.norm("mixer_norm", "feedforward_layer_norm")
            block.norm("mlp_norm", "post_feedforward_layernorm")
        else:
            _delta_net(block.under("mixer/", "linear_attn."), config)
            block.norm("mixer_norm", "attention_layer_norm")
            block.norm("mlp_norm", "feedforward_layer_norm")
        common.swiglu(block)


def _delta_net(t: tables.Table, config: config_lib.Config) -> None:
    options = config.gated_delta_net
    heads, key_dim, value_dim = options.expanded_sizes(
        config.host("gated_delta_net")
    )
    parts = {
        "q": heads * key_dim,
        "k": heads * key_dim,
        "v": (options.value_heads or heads) * value_dim,
    }
    t.fused("qkv", {f"{name}_proj": size for name, size in parts.items()})
    if config.layout != _APART:
        total = sum(parts.values())
        third = -(-total // 3)
        parts = {"q": third, "k": third, "v": total - 2 * third}
    t.convolutions(
        "conv", {f"{name}_conv1d": size for name, size in parts.items()}
    )
    t.linear("beta", "b_proj")
    fla.step_decay(t)
    t.linear("gate", "g_proj")
    t.norm("norm", "o_norm")
    t.linear("out", "o_proj", inputs=2)
