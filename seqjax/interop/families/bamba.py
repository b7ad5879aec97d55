"""Bamba of transformers (`model_type` bamba)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import state_space


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    head_dim = s.whole("head_dim", width // heads)
    s.only("hidden_act", "silu")
    state_space.ignore(s)
    s.only("attn_rotary_emb", None, head_dim // 2)
    places = s.places("attn_layer_indices", depth, [])
    names = ["mamba2", "attention"]
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        swiglu=layers.SwiGLUOptions(use_bias=s.flag("mlp_bias", False)),
        mamba2=state_space.mamba2_options(s, width),
        attention=state_space.attention_options(
            s, heads, head_dim, **common.rotary(s, head_dim, 0.5)
        ),
        **common.pattern([names[i in places] for i in range(depth)]),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_layernorm")
    for _, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        if kind == "attention":
            bias = config.attention.use_bias
            common.attention(block.under("mixer/", "self_attn."), bias, bias)
        else:
            state_space.mamba2(block.under("mixer/", "mamba."), config.mamba2)
        block.norm("mlp_norm", "pre_ff_layernorm")
        common.swiglu(block, "mlp", "feed_forward", bias=config.swiglu.use_bias)
