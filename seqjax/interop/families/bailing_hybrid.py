"""Bailing hybrid, Ling 3, of transformers (`model_type` bailing_hybrid).

Layers of Kimi Delta Attention and of latent attention as in Kimi Linear; the
shared part of the keys is rotated, neighbouring channels in pairs, where ours
pairs the halves: their channels are put in that order.
"""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import kimi_linear


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    depth, heads = s.whole("num_hidden_layers"), s.whole("num_attention_heads")
    default = common.every(depth, s.whole("layer_group_size", 6))
    kinds = common.layer_types(s, kimi_linear.KINDS, default)
    dense = s.count("first_k_dense_replace", 2)
    mlps = ["dense" if layer < dense else "sparse" for layer in range(depth)]
    mlps = common.layer_types(s, kimi_linear.MLPS, mlps, "mlp_layer_types")
    s.count("num_nextn_predict_layers", 0)
    s.ignored("mtp_loss_scaling_factor")
    width = s.whole("short_conv_kernel_size", 4)
    s.only("linear_conv_kernel_dim", None, width)
    s.only("linear_num_heads", None, heads)
    floor = None
    if s.flag("kda_safe_gate", True):
        floor = s.number("kda_lower_bound", -5.0)
    s.ignored("kda_lower_bound")
    shared = s.whole("qk_rope_head_dim", 64)
    if shared % 2 or s.whole("qk_nope_head_dim", 128) % 2:
        s.fault("qk_rope_head_dim and qk_nope_head_dim must be even")
    kda = layers.KDAOptions(
        # `head_dim` is another one in files that say this.
        head_dim=s.whole("linear_head_dim", s.whole("head_dim", 128)),
        conv_width=width,
        full_gates=True,
        gate_bias=False,
        floor=floor,
    )
    return kimi_linear.frame(
        s,
        kinds,
        mlps,
        kda,
        norm_eps=s.number("rms_norm_eps", 1e-6),
        rotary_base=common.rotary(s, shared, base=6e6)["rotary_base"],
        output_gate="headwise",
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "model.word_embeddings")
    for more in range(s.get("num_nextn_predict_layers", 0)):
        t.aside(f"model.layers.{config.depth + more}", common.MORE_TOKENS)
    size = len(config.pattern)
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        block.norm("mlp_norm", "post_attention_layernorm")
        inner = block.under("mixer/", "attention.")
        if kind == "kda":
            kimi_linear.delta_attention(inner, config)
            inner.linear("decay/step", "f_proj")
            inner.same("decay/A_log", "A_log")
            inner.linear("gate", "g_proj")
        else:
            _latent(inner, config)
        inner.linear("out", "dense", inputs=2)
        if config.mlp(layer % size) == "moe":
            inner = block.under("mlp/", "mlp.")
            inner.linear("router", "gate")
            inner.same("correction", "gate.expert_bias")
            experts.separate(inner)
            common.swiglu(inner, "shared", "shared_experts")
        else:
            common.swiglu(block)


def _latent(t: tables.Table, config: config_lib.Config) -> None:
    sizes = config.latent_attention.latent_sizes(
        config.host("latent_attention")
    )
    shared = sizes["shared_dim"]
    for ours, theirs, heads, own in (
        ("query", "q_proj", sizes["heads"], sizes["key_dim"]),
        ("compress", "kv_a_proj_with_mqa", 1, sizes["rank"]),
    ):
        dim, width = own + shared, config.width
        whole = heads * dim, width
        t.link(
            f"{theirs}.weight",
            whole,
            f"{ours}/kernel",
            (heads, dim, width),
            part=tables.Part(1, 0, own),
            order=(2, 0, 1),
            index=(0, 0, 0),
        )
        t.link(
            f"{theirs}.weight",
            whole,
            f"{ours}/kernel",
            (heads, dim // 2, 2, width),
            part=tables.Part(1, own // 2, dim // 2),
            order=(3, 0, 2, 1),
            index=(0, 0, own),
            region=(width, heads, shared),
        )
    t.norm("latent_norm", "kv_a_layernorm")
    t.linear("expand", "kv_b_proj")
    t.linear("gate", "g_proj")
