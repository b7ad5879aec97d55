"""Mamba of transformers (`model_type` mamba), and what FalconMamba takes."""

import math
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import state_space


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    return described(s, layers.MambaOptions())


def described(
    s: settings_lib.Settings, options: layers.MambaOptions
) -> config_lib.Config:
    """The config of a model; `options` has what the settings leave open."""
    width = s.whole("hidden_size")
    s.only("hidden_act", "silu")
    state_space.ignore(s, "time_step_min")
    # What older files keep of the project that they were converted from.
    s.ignored("d_inner", "d_model", "n_layer", "ssm_cfg", "rms_norm")
    s.ignored("fused_add_norm", "pad_vocab_size_multiple")
    s.ignored("expand")  # intermediate_size says it, where it is there
    options.expand = state_space.inner(s, width, "expand", "intermediate_size")
    options.step_rank = state_space.whole_or_auto(
        s, "time_step_rank", math.ceil(width / 16)
    )
    options.state_size = s.whole("state_size", 16)
    options.conv_width = s.whole("conv_kernel", 4)
    options.conv_bias = s.flag("use_conv_bias", True)
    options.use_bias = s.flag("use_bias", False)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        pattern=("mamba",),
        repeats=s.whole("num_hidden_layers"),
        mlps=("none",),
        tie_embeddings=s.flag("tie_word_embeddings", True),
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        mamba=options,
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "backbone.embeddings", "backbone.norm_f")
    for _, _, block in t.layers(config, "backbone.layers.{}."):
        block.norm("mixer_norm", "norm")
        state_space.mamba(block.under("mixer/", "mixer."), config.mamba)
