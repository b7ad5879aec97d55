"""Nemotron-H of transformers (`model_type` nemotron_h).

Their layers are a mixer or an MLP each; an MLP and the mixer before it are one
layer of ours.
"""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import state_space

_MIXERS = {
    "M": "mamba2",
    "mamba": "mamba2",
    "linear_attention": "mamba2",
    "*": "attention",
    "attention": "attention",
    "full_attention": "attention",
}
_MLPS = {"-": "swiglu", "mlp": "swiglu", "E": "moe", "moe": "moe"}


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width = s.whole("hidden_size")
    state_space.ignore(s, "hidden_dropout", "mamba_ssm_cache_dtype", "expand")
    # Their full pass bounds the step by time_step_min, not by this.
    s.ignored(
        "time_step_limit", "moe_shared_expert_overlap", "n_shared_experts"
    )
    s.ignored("num_hidden_layers", "mtp_layers_block_type")
    # Attention has no positions, and the norms have one epsilon.
    s.ignored("partial_rotary_factor", "rope_theta", "time_step_rank")
    s.ignored("norm_eps", "rms_norm_eps")
    s.only("mlp_hidden_act", "relu2")
    s.only("mamba_hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"):
        s.only(name, False)
    s.only("sliding_window", None)
    s.only("moe_latent_size", None)
    s.count("num_nextn_predict_layers", 0)
    s.ignored("mtp_hybrid_override_pattern")
    types = s.get("hybrid_override_pattern", None)
    types = s.get("layers_block_type", None) or types
    blocks = _blocks(types) if isinstance(types, list | str) else []
    if not blocks:
        s.fault(
            f"layers_block_type = {types} is not supported; it must list "
            f"mixers, {sorted(_MIXERS)}, each before at most one of "
            f"{sorted(_MLPS)}"
        )
        blocks = [("mamba2", "none", 0)]
    heads, head_dim = s.whole("mamba_num_heads"), s.whole("mamba_head_dim")
    s.only("attention_head_dim", None, s.whole("head_dim", 128))
    s.only("num_query_groups", None, s.whole("num_key_value_heads", 8))
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=s.whole("num_attention_heads"),
        head_dim=s.whole("head_dim", 128),
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        swiglu=layers.SwiGLUOptions(activation="relu2", gated=False),
        mamba2=layers.Mamba2Options(
            expand=heads * head_dim / width,
            head_dim=head_dim,
            state_size=s.whole("ssm_state_size", 128),
            groups=s.whole("n_groups", 8),
            conv_width=s.whole("conv_kernel", 4),
            conv_bias=s.flag("use_conv_bias", True),
            smallest_step=s.number("time_step_min", 0.001),
        ),
        attention=layers.AttentionOptions(
            key_value_heads=s.whole("num_key_value_heads", 8), rotary_base=None
        ),
        moe=layers.MoEOptions(
            width=s.whole("moe_intermediate_size", 7688),
            experts=s.whole("n_routed_experts", 8),
            active=s.whole("num_experts_per_tok", 2),
            shared_width=s.whole("moe_shared_expert_intermediate_size", 7688),
            activation="relu2",
            gated=False,
            scores="sigmoid",
            renormalize=s.flag("norm_topk_prob", True),
            correction=True,
            groups=s.whole("n_group", 1),
            active_groups=s.whole("topk_group", 1),
            factor=s.number("routed_scaling_factor", 1.0),
        ),
        **common.pattern([b[0] for b in blocks], [b[1] for b in blocks]),
    )


def _blocks(types: Any) -> list[tuple[str, str, int]]:
    """Layers of ours: mixer, MLP, index of the mixer; none if impossible."""
    found: list[tuple[str, str, int]] = []
    for layer, kind in enumerate(types or ()):
        if not isinstance(kind, str):
            return []
        if kind in _MIXERS:
            found.append((_MIXERS[kind], "none", layer))
        elif kind in _MLPS and found and found[-1][1] == "none":
            found[-1] = (found[-1][0], _MLPS[kind], found[-1][2])
        else:
            return []
    return found


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "backbone.embeddings", "backbone.norm_f")
    t.aside("mtp", common.MORE_TOKENS)
    types = s.get("layers_block_type") or s["hybrid_override_pattern"]
    blocks = _blocks(types)
    for layer, kind, block in t.layers(config, ""):
        _, mlp, place = blocks[layer]
        theirs = f"backbone.layers.{place}."
        block.norm("mixer_norm", f"{theirs}norm")
        inner = block.under("mixer/", f"{theirs}mixer.")
        if kind == "attention":
            common.attention(inner)
        else:
            state_space.mamba2(inner, config.mamba2)
        if mlp == "none":
            continue
        theirs = f"backbone.layers.{place + 1}."
        block.norm("mlp_norm", f"{theirs}norm")
        inner = block.under("mlp/", f"{theirs}mixer.")
        if mlp == "moe":
            inner.linear("router", "gate")
            inner.same("correction", "gate.e_score_correction_bias")
            experts.separate(inner, names=experts.NAMES[1:])
            inner = inner.under("shared/", "shared_experts.")
        for name in ("up", "down"):
            inner.linear(name, f"{name}_proj")
