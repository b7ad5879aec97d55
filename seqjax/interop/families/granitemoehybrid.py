"""Granite 4 of transformers (`model_type` granitemoehybrid)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import state_space

_NAMES = {
    "mamba": "mamba2",
    "linear_attention": "mamba2",
    "attention": "attention",
    "full_attention": "attention",
}


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    head_dim = width // heads
    s.only("hidden_act", "silu")
    s.only("mlp_bias", False)
    s.only("normalization_function", "rmsnorm")
    s.ignored("init_method")
    state_space.ignore(s)
    where = {"rotary_base": None}
    if s.only("position_embedding_type", None, "nope", "rope") == "rope":
        where = common.rotary(s, head_dim)
    s.ignored("rope_parameters", "rope_scaling", "rope_theta")
    attention = state_space.attention_options(s, heads, head_dim, **where)
    attention.scale = s.number("attention_multiplier", 1.0)
    kinds = common.layer_types(s, _NAMES, ["linear_attention"] * depth)
    shared = s.whole("shared_intermediate_size", 1024)
    mlp, moe = "swiglu", layers.MoEOptions()
    if s.get("num_local_experts", 8):
        mlp, moe = (
            "moe",
            layers.MoEOptions(
                width=s.whole("intermediate_size"),
                experts=s.whole("num_local_experts", 8),
                active=s.whole("num_experts_per_tok", 2),
                shared_width=shared,
            ),
        )
    s.ignored("intermediate_size", "num_experts_per_tok")
    blocks = common.pattern(kinds)
    blocks["mlps"] = (mlp,)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-6),
        embedding_scale=s.number("embedding_multiplier", 1.0),
        branch_scale=s.number("residual_multiplier", 1.0),
        logit_scale=1 / s.positive("logits_scaling", 1.0),
        mamba2=state_space.mamba2_options(s, width),
        attention=attention,
        swiglu=layers.SwiGLUOptions(width=shared),
        moe=moe,
        **blocks,
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    bias = config.attention.use_bias
    for _, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        if kind == "attention":
            common.attention(block.under("mixer/", "self_attn."), bias, bias)
        else:
            state_space.mamba2(block.under("mixer/", "mamba."), config.mamba2)
        block.norm("mlp_norm", "post_attention_layernorm")
        shared = block.under("mlp/", "shared_mlp.")
        if config.mlps == ("moe",):
            inner = block.under("mlp/", "block_sparse_moe.")
            inner.linear("router", "router.layer")
            experts.joined(inner, "input_linear.weight", "output_linear.weight")
            shared = block.under("mlp/shared/", "shared_mlp.")
        _gated(shared)


def _gated(t: tables.Table) -> None:
    """A SwiGLU whose gate and map in are one tensor."""
    inputs, width = t.size("up/kernel")
    for name, start in (("gate", 0), ("up", width)):
        t.link(
            "input_linear.weight",
            (2 * width, inputs),
            f"{name}/kernel",
            part=tables.Part(0, start, start + width),
            order=(1, 0),
        )
    t.linear("down", "output_linear")
