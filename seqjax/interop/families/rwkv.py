"""RWKV-4 of transformers (`model_type` rwkv)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width = s.whole("hidden_size")
    inner = s.whole("attention_hidden_size", width)
    # Halving the stream every so many layers is for float16: what follows is a
    # norm, so that it changes no logits.
    s.ignored("rescale_every", "context_length")
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=1,
        mlp_width=s.whole("intermediate_size", 4 * width),
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm="layer",
        norm_eps=s.number("layer_norm_epsilon", 1e-5),
        embedding_norm=True,
        pattern=("rwkv4",),
        repeats=s.whole("num_hidden_layers"),
        rwkv4=layers.RWKV4Options(expand=inner / width),
        mlps=("rwkv_channels",),
        rwkv_channels=layers.RWKVChannelsOptions(stores_own=True),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "rwkv.embeddings", "rwkv.ln_out", "head")
    t.norm("embedding_norm", "rwkv.blocks.0.pre_ln", bias=True)
    share = 1, 1, config.width
    for _, _, block in t.layers(config, "rwkv.blocks.{}."):
        block.norm("mixer_norm", "ln1", bias=True)
        inner = block.under("mixer/", "attention.")
        for name in ("key", "value", "receptance"):
            inner.same(f"mix_{name}", f"time_mix_{name}", share)
            inner.linear(name, name)
        inner.same("decay", "time_decay")
        inner.same("bonus", "time_first")
        inner.linear("out", "output")
        block.norm("mlp_norm", "ln2", bias=True)
        inner = block.under("mlp/", "feed_forward.")
        for name in ("key", "receptance"):
            inner.same(f"mix_{name}", f"time_mix_{name}", share)
            inner.linear(name, name)
        inner.linear("value", "value")
