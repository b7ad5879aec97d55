"""RecurrentGemma of transformers (`model_type` recurrent_gemma)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    s.only("head_dim", None, width // heads)
    s.only("hidden_activation", "gelu_pytorch_tanh")
    s.only("attention_bias", False)
    s.ignored("attention_dropout", "w_init_variance_scale")
    s.ignored("final_w_init_variance_scale")
    s.only("embeddings_scale_by_sqrt_dim", True)
    types = s.get("_block_types", ["recurrent", "recurrent", "attention"])
    types = s.get("block_types", types)
    names = {"recurrent": "rglru", "attention": "attention"}
    if not isinstance(types, list) or not types or not {*types} <= {*names}:
        s.fault(
            f"block_types = {types} is not supported; it must be a list of "
            f"{sorted(names)}"
        )
        types = ["recurrent"]
    inner = s.whole("lru_width", width)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size") // 2,
        tie_embeddings=s.flag("tie_word_embeddings", True),
        norm="zero_centred_rms",
        norm_eps=s.number("rms_norm_eps", 1e-6),
        # Rounded so by them, whatever the dtype of the model.
        embedding_scale=float(np.asarray(width**0.5, jnp.bfloat16)),
        logit_cap=s.number("logits_soft_cap", 30.0),
        swiglu=layers.SwiGLUOptions(activation="gelu_tanh", use_bias=True),
        rglru=layers.RGLRUOptions(
            expand=inner / width, conv_width=s.whole("conv1d_width", 4)
        ),
        attention=layers.AttentionOptions(
            key_value_heads=s.whole("num_key_value_heads", heads),
            window=s.whole("attention_window_size", 2048),
            use_out_bias=True,
            **common.rotary(s, width // heads, 0.5),
        ),
        **common.pattern([names[types[i % len(types)]] for i in range(depth)]),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_norm")
    for _, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "temporal_pre_norm")
        inner = block.under("mixer/", "temporal_block.")
        if kind == "rglru":
            _recurrent(inner, config)
        else:
            common.attention(inner, out=True)
        block.norm("mlp_norm", "channel_pre_norm")
        common.swiglu(block, "mlp", "mlp_block", bias=True)


def _recurrent(t: tables.Table, config: config_lib.Config) -> None:
    channels = t.size("decay")[0]
    for ours, theirs in (("in", "x"), ("gate", "y"), ("out", "out")):
        t.linear(ours, f"linear_{theirs}", bias=True)
    t.convolutions("conv", {"conv_1d": channels})
    t.same("conv/bias", "conv_1d.bias")
    blocks = config.rglru.blocks or config.heads
    for ours, theirs in (("input_gate", "input"), ("decay_gate", "recurrent")):
        t.same(f"{ours}/kernel", f"rg_lru.{theirs}_gate_weight")
        shape = blocks, channels // blocks
        t.same(f"{ours}/bias", f"rg_lru.{theirs}_gate_bias", shape)
    t.same("decay", "rg_lru.recurrent_param")
