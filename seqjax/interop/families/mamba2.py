"""Mamba-2 of transformers (`model_type` mamba2)."""

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
    s.only("hidden_act", "silu")
    s.only("use_bias", False)
    state_space.ignore(s, "time_step_min", "time_step_rank", "rms_norm")
    s.ignored("norm_before_gate")  # the gate comes first, whatever it says
    expand, head_dim = s.number("expand", 2), s.whole("head_dim", 64)
    s.only("intermediate_size", None, round(expand * width))
    heads = s.whole("num_heads", 128)
    state_space.check_heads(s, expand * width, heads, head_dim)
    options = layers.Mamba2Options(
        expand=expand,
        head_dim=head_dim,
        state_size=s.whole("state_size", 128),
        groups=s.whole("n_groups", 8),
        conv_width=s.whole("conv_kernel", 4),
        conv_bias=s.flag("use_conv_bias", True),
        **state_space.steps(s, "time_step_limit"),
    )
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        pattern=("mamba2",),
        repeats=s.whole("num_hidden_layers"),
        mlps=("none",),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        mamba2=options,
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "backbone.embeddings", "backbone.norm_f")
    for _, _, block in t.layers(config, "backbone.layers.{}."):
        block.norm("mixer_norm", "norm")
        state_space.mamba2(block.under("mixer/", "mixer."), config.mamba2)
