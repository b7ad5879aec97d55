"""Qwen3.5, its text model, of transformers (`model_type` qwen3_5_text)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common

_KINDS = {
    "linear_attention": "gated_delta_net",
    "full_attention": "attention",
}


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    s.only("mlp_only_layers", [])
    return frame(s, s.whole("intermediate_size"))


def frame(
    s: settings_lib.Settings,
    mlp_width: int,
    mlps: list[str] | None = None,
    **more: Any,
) -> config_lib.Config:
    """The config of Qwen3.5 and Qwen3-Next; `more` are other fields."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    head_dim = s.whole("head_dim", 256)
    s.only("hidden_act", "silu")
    s.only("attention_bias", False)
    s.only("attn_output_gate", True)
    s.only("use_sliding_window", False)
    s.ignored("attention_dropout", "mamba_ssm_dtype")
    s.ignored("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    period = s.whole("full_attention_interval", 4)
    kinds = common.layer_types(s, _KINDS, common.every(depth, period))
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=mlp_width,
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm="zero_centred_rms",
        norm_eps=s.number("rms_norm_eps", 1e-6),
        gated_delta_net=common.delta_net(
            s, key_heads=16, value_heads=32, key_dim=128, value_dim=128
        ),
        attention=layers.AttentionOptions(
            head_dim=head_dim,
            key_value_heads=s.whole("num_key_value_heads", heads),
            output_gate="elementwise",
            qk_norm=True,
            zero_centred_norm=True,
            **common.rotary(s, head_dim, 0.25),
        ),
        **common.pattern(kinds, mlps),
        **more,
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    t.aside("mtp", common.MORE_TOKENS)
    for _, kind, block in t.layers(config, "model.layers.{}."):
        norms(block)
        if kind == "attention":
            attention(block.under("mixer/", "self_attn."))
        else:
            inner = block.under("mixer/", "linear_attn.")
            inner.linear("qkv", "in_proj_qkv")
            inner.linear("gate", "in_proj_z")
            inner.linear("beta", "in_proj_b")
            inner.linear("decay/step", "in_proj_a")
            delta_net(inner)
        common.swiglu(block)


def norms(block: tables.Table) -> None:
    """The norms of a layer."""
    block.norm("mixer_norm", "input_layernorm")
    block.norm("mlp_norm", "post_attention_layernorm")


def attention(t: tables.Table) -> None:
    """Gated attention: each head's query and gate are one after the other."""
    width, heads, dim = t.size("query/kernel")
    for part, ours in enumerate(("query", "gate")):
        t.link(
            "q_proj.weight",
            (2 * heads * dim, width),
            f"{ours}/kernel",
            (heads, 2, dim, width),
            part=tables.Part(1, part, part + 1),
            order=(3, 0, 1, 2),
        )
    t.linear("key", "k_proj")
    t.linear("value", "v_proj")
    t.norm("query_norm", "q_norm")
    t.norm("key_norm", "k_norm")
    t.linear("out", "o_proj", inputs=2)


def delta_net(t: tables.Table) -> None:
    """What is the same in both of Gated DeltaNet."""
    t.convolutions("conv", {"conv1d": t.size("conv/weight")[1]})
    t.same("decay/bias", "dt_bias")
    t.same("decay/A_log", "A_log")
    t.norm("norm", "norm")
    t.linear("out", "out_proj", inputs=2)
