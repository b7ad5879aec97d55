"""Falcon-H1 of transformers (`model_type` falcon_h1)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import state_space


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width = s.whole("hidden_size")
    heads = s.whole("num_attention_heads")
    head_dim = s.whole("head_dim", width // heads)
    s.only("hidden_act", "silu")
    s.only("projectors_bias", False)
    state_space.ignore(s, "mamba_use_mlp", "mlp_expansion_factor")
    s.ignored("time_step_min", "time_step_rank")  # of the first parameters
    s.only("attn_layer_indices", None)
    s.ignored("mamba_expand")  # mamba_d_ssm says it, where it is there
    gate_scale, output_scale = _numbers(s, "mlp_multipliers", 2)
    mamba2 = state_space.mamba2_options(s, width)
    mamba2.scales = _numbers(s, "ssm_multipliers", 5)
    first = s.flag("mamba_norm_before_gate", True)
    mamba2.norm = "norm_first" if first else "gate_first"
    if not s.flag("mamba_rms_norm", False):
        mamba2.norm = "none"
    attention = state_space.attention_options(
        s, heads, head_dim, **common.rotary(s, head_dim)
    )
    attention.scale = head_dim**-0.5 * s.number("key_multiplier", 1.0)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        pattern=("mamba2_attention",),
        repeats=s.whole("num_hidden_layers"),
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        embedding_scale=s.number("embedding_multiplier", 1.0),
        logit_scale=s.number("lm_head_multiplier", 1.0),
        swiglu=layers.SwiGLUOptions(
            use_bias=s.flag("mlp_bias", False),
            gate_scale=gate_scale,
            output_scale=output_scale,
        ),
        mamba2_attention=layers.Mamba2AttentionOptions(
            mamba2=mamba2,
            attention=attention,
            mamba2_scales=(
                s.number("ssm_in_multiplier", 1.0),
                s.number("ssm_out_multiplier", 1.0),
            ),
            attention_scales=(
                s.number("attention_in_multiplier", 1.0),
                s.number("attention_out_multiplier", 1.0),
            ),
        ),
    )


def _numbers(
    s: settings_lib.Settings, name: str, size: int
) -> tuple[float, ...]:
    """So many factors, 1 where they are not said."""
    value = s.get(name, None)
    if value is None:
        return (1.0,) * size
    numbers = isinstance(value, list) and len(value) == size
    if not numbers or {*map(type, value)} - {int, float}:
        s.fault(f"{name} = {value} is not supported; it must be {size} numbers")
        return (1.0,) * size
    return tuple(value)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_layernorm")
    options = config.mamba2_attention
    bias = options.attention.use_bias
    for _, _, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        state_space.mamba2(
            block.under("mixer/mamba2/", "mamba."), options.mamba2
        )
        attention = block.under("mixer/attention/", "self_attn.")
        common.attention(attention, bias, bias)
        block.norm("mlp_norm", "pre_ff_layernorm")
        common.swiglu(block, "mlp", "feed_forward", bias=config.swiglu.use_bias)
