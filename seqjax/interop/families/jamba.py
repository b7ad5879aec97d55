"""Jamba of transformers (`model_type` jamba)."""

import math
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import state_space


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    s.only("hidden_act", "silu")
    s.only("attention_bias", False)
    s.only("sliding_window", None)
    s.only("mamba_inner_layernorms", True)
    state_space.ignore(s, "calc_logits_for_entire_prompt", "n_ctx")
    count = s.whole("num_experts", 16)
    mixers = _every(s, "attn_layer", 8, 4, depth)
    mlps = _every(s, "expert_layer", 2, 1, depth)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-6),
        mamba=layers.MambaOptions(
            expand=s.number("mamba_expand", 2),
            step_rank=state_space.whole_or_auto(
                s, "mamba_dt_rank", math.ceil(width / 16)
            ),
            state_size=s.whole("mamba_d_state", 16),
            conv_width=s.whole("mamba_d_conv", 4),
            conv_bias=s.flag("mamba_conv_bias", True),
            use_bias=s.flag("mamba_proj_bias", False),
            selection_norm="scaled",
        ),
        attention=layers.AttentionOptions(
            key_value_heads=s.whole("num_key_value_heads", 8),
            rotary_base=None,
        ),
        moe=layers.MoEOptions(
            experts=count,
            active=s.whole("num_experts_per_tok", 2),
            renormalize=False,
        ),
        **common.pattern(
            [("mamba", "attention")[there] for there in mixers],
            [("swiglu", "moe")[there and count > 1] for there in mlps],
        ),
    )


def _every(
    s: settings_lib.Settings, name: str, period: int, offset: int, depth: int
) -> list[bool]:
    """Which layers have something that comes once a period."""
    period = s.whole(f"{name}_period", period)
    first = s.get(f"{name}_offset", offset)
    if type(first) is not int or not 0 <= first < period:
        s.fault(
            f"{name}_offset = {first} is not supported; it must be from 0 to "
            f"{period - 1}"
        )
    return [i % period == first for i in range(depth)]


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_layernorm")
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        if kind == "attention":
            common.attention(block.under("mixer/", "self_attn."))
        else:
            inner = block.under("mixer/", "mamba.")
            state_space.mamba(inner, config.mamba)
            for ours, theirs in (("step", "dt"), ("B", "b"), ("C", "c")):
                inner.norm(f"{ours}_norm", f"{theirs}_layernorm")
        block.norm("mlp_norm", "pre_ff_layernorm")
        if config.mlp(layer % len(config.pattern)) == "moe":
            inner = block.under("mlp/", "feed_forward.")
            inner.linear("router", "router")
            experts.separate(inner)
        else:
            common.swiglu(block, "mlp", "feed_forward")
