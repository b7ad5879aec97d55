"""LFM2 of transformers (`model_type` lfm2)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common

_NAMES = {"conv": "gated_convolution", "full_attention": "attention"}


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    s.ignored("block_dim", "conv_dim", "conv_dim_out", "conv_use_xavier_init")
    s.ignored("block_mlp_init_scale", "block_out_init_scale", "num_heads")
    s.ignored("block_norm_eps", "block_use_xavier_init", "theta")
    s.only("block_use_swiglu", True)
    s.only("use_pos_enc", True)
    places = s.places("full_attn_idxs", depth, range(depth))
    default = [
        "full_attention" if i in places else "conv" for i in range(depth)
    ]
    tied = s.flag("tie_word_embeddings", True)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=_mlp_width(s),
        tie_embeddings=s.flag("tie_embedding", tied),
        norm_eps=s.number("norm_eps", 1e-5),
        gated_convolution=layers.GatedConvolutionOptions(
            conv_width=s.whole("conv_L_cache", 3),
            use_bias=s.flag("conv_bias", False),
        ),
        attention=layers.AttentionOptions(
            key_value_heads=s.whole("num_key_value_heads", heads),
            qk_norm=True,
            **common.rotary(s, width // heads, base=1e6),
        ),
        **common.pattern(common.layer_types(s, _NAMES, default)),
    )


def _mlp_width(s: settings_lib.Settings) -> int:
    wide = s.whole("intermediate_size", 12288)
    wide = s.whole("block_ff_dim", wide)
    factor = s.number("block_ffn_dim_multiplier", 1.0)
    multiple = s.whole("block_multiple_of", 256)
    if not s.flag("block_auto_adjust_ff_dim", True):
        return wide
    return -(-int(factor * int(2 * wide / 3)) // multiple) * multiple


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.embedding_norm")
    bias = config.gated_convolution.use_bias
    for _, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "operator_norm")
        if kind == "attention":
            inner = block.under("mixer/", "self_attn.")
            for name in ("query", "key", "value"):
                inner.linear(name, f"{name[0]}_proj")
            inner.norm("query_norm", "q_layernorm")
            inner.norm("key_norm", "k_layernorm")
            inner.linear("out", "out_proj", inputs=2)
        else:
            inner = block.under("mixer/", "conv.")
            inner.linear("in", "in_proj", bias=bias)
            inner.convolutions("conv", {"conv": config.width})
            if bias:
                inner.same("conv/bias", "conv.bias")
            inner.linear("out", "out_proj", bias=bias)
        block.norm("mlp_norm", "ffn_norm")
        common.swiglu(block, "mlp", "feed_forward", ("w1", "w3", "w2"))
