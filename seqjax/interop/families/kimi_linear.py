"""Kimi Linear (`model_type` kimi_linear): transformers' files and Moonshot's.

They differ in how config.json groups the settings of the KDA layers and in the
name of the dense layers, which transformers writes like those with experts.
"""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import fla

KINDS = {"linear_attention": "kda", "full_attention": "latent_attention"}
MLPS = {"dense": "swiglu", "sparse": "moe"}
# Layout of Moonshot's files.
_OWN = "dense layers under mlp"
_EXPERT = ("w1", "w3", "w2")


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    depth = s.whole("num_hidden_layers")
    linear = _linear(s, depth)
    default = [
        "full_attention" if layer and layer % 4 == 0 else "linear_attention"
        for layer in range(depth)
    ]
    kinds = common.layer_types(s, KINDS, linear.pop("types", default))
    dense = s.count("first_k_dense_replace", 1)
    s.only("q_lora_rank", None)
    s.only("mla_use_nope", True)
    s.only("moe_layer_freq", 1)
    s.only("moe_router_activation_func", "sigmoid")
    s.only("num_nextn_predict_layers", 0)
    s.only("rope_scaling", None)
    s.ignored("rope_theta", "use_grouped_topk")
    mlps = ["dense" if layer < dense else "sparse" for layer in range(depth)]
    mlps = common.layer_types(s, MLPS, mlps, "mlp_layer_types")
    layout = ""
    if "swiglu" in mlps:
        first = f"model.layers.{mlps.index('swiglu')}.mlp.gate_proj.weight"
        layout = _OWN if s.shape(first) else ""
    return frame(
        s,
        kinds,
        mlps,
        layers.KDAOptions(gate_bias=False, **linear),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        layout=layout,
        rotary_base=None,
    )


def _linear(s: settings_lib.Settings, depth: int) -> dict[str, Any]:
    """Sizes of the KDA layers, and perhaps the types of all layers."""
    inner = s.group("linear_attn_config")
    if inner is None:
        return {
            "heads": s.whole("linear_num_heads", 32),
            "head_dim": s.whole("linear_head_dim", 128),
            "conv_width": s.whole("linear_conv_kernel_dim", 4),
        }
    found: dict[str, Any] = {
        "heads": inner.whole("num_heads"),
        "head_dim": inner.whole("head_dim"),
        "conv_width": inner.whole("short_conv_kernel_size", 4),
    }
    full = inner.places("full_attn_layers", depth + 1)
    kda = inner.places("kda_layers", depth + 1)
    if sorted(full + kda) != list(range(1, depth + 1)):
        inner.fault(
            "linear_attn_config.full_attn_layers and kda_layers must be all "
            f"layers from 1 to {depth} together, got {full} and {kda}"
        )
    found["types"] = [
        "full_attention" if layer + 1 in full else "linear_attention"
        for layer in range(depth)
    ]
    s.include(inner)
    return found


def frame(
    s: settings_lib.Settings,
    kinds: list[str],
    mlps: list[str],
    kda: layers.KDAOptions,
    *,
    norm_eps: float,
    layout: str = "",
    **latent: Any,
) -> config_lib.Config:
    """The config of Kimi Linear and Bailing.

    Args:
      s: the settings.
      kinds: mixer of each layer.
      mlps: channel mixer of each layer.
      kda: options of Kimi Delta Attention.
      norm_eps: of the norms.
      layout: of the tensors.
      **latent: options of latent attention that differ.
    """
    heads, width = s.whole("num_attention_heads"), s.whole("hidden_size")
    s.only("num_key_value_heads", None, heads)
    s.only("hidden_act", "silu")
    s.only("attention_bias", False)
    # head_dim is that of the shared part in some files and nothing in others.
    s.ignored("attention_dropout", "head_dim", "model_max_length")
    s.ignored("output_router_logits", "pretraining_tp")
    key_dim = s.whole("qk_nope_head_dim", 128)
    shared = s.whole("qk_rope_head_dim", 64)
    s.only("qk_head_dim", None, key_dim + shared)
    expert = s.whole("moe_intermediate_size")
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=norm_eps,
        kda=kda,
        latent_attention=layers.LatentAttentionOptions(
            eps=1e-6,
            head_dim=key_dim,
            shared_dim=shared,
            value_dim=s.whole("v_head_dim", 128),
            rank=s.whole("kv_lora_rank", 512),
            **latent,
        ),
        moe=layers.MoEOptions(
            experts=s.whole("num_experts"),
            active=s.whole("num_experts_per_token"),
            width=expert,
            shared_width=expert * s.whole("num_shared_experts", 1),
            scores="sigmoid",
            renormalize=s.flag("moe_renormalize", True),
            correction=True,
            groups=s.whole("num_expert_group", 1),
            active_groups=s.whole("topk_group", 1),
            factor=s.number("routed_scaling_factor"),
        ),
        layout=layout,
        **common.pattern(kinds, mlps),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    size = len(config.pattern)
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        block.norm("mlp_norm", "post_attention_layernorm")
        inner = block.under("mixer/", "self_attn.")
        if kind == "kda":
            delta_attention(inner, config)
            for ours, theirs in (
                ("decay/inner", "f_a_proj"),
                ("decay/step", "f_b_proj"),
                ("gate_in", "g_a_proj"),
                ("gate", "g_b_proj"),
            ):
                inner.linear(ours, theirs)
            heads = inner.size("decay/A_log")[0]
            inner.same("decay/A_log", "A_log", (1, 1, heads, 1))
            inner.linear("out", "o_proj", inputs=2)
        else:
            for name, theirs in (
                ("query", "q_proj"),
                ("compress", "kv_a_proj_with_mqa"),
                ("expand", "kv_b_proj"),
            ):
                inner.linear(name, theirs)
            inner.norm("latent_norm", "kv_a_layernorm")
            inner.linear("out", "o_proj", inputs=2)
        if config.mlp(layer % size) == "moe":
            inner = block.under("mlp/", "block_sparse_moe.")
            inner.linear("router", "gate")
            inner.same("correction", "gate.e_score_correction_bias")
            experts.separate(inner, names=_EXPERT)
            common.swiglu(inner, "shared", "shared_experts")
        else:
            own = config.layout == _OWN
            common.swiglu(block, "mlp", "mlp" if own else "block_sparse_moe")


def delta_attention(t: tables.Table, config: config_lib.Config) -> None:
    """What is the same in both of KDA."""
    fla.query_key_value(t, config.kda, config, "kda")
    t.linear("beta", "b_proj")
    t.flat("decay/bias", "dt_bias")
    t.norm("norm", "o_norm")
