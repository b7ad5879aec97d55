"""The frame that the models of flash-linear-attention share.

Embedding, layers of a norm, a mixer, a norm and SwiGLU (of RWKV: its own
channel mixing), a norm, output weights.  The setting `attn` replaces the mixer
of the layers it lists by softmax attention.  A family adds its mixer.
"""

from collections.abc import Callable
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import patterns
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables

Mixer = Callable[[tables.Table, Any, config_lib.Config, int], None]


def config(
    s: settings_lib.Settings, kind: str, options: layers.Options, **more: Any
) -> config_lib.Config:
    """The config of a model.

    Args:
      s: the settings; those of the mixer have been asked for.
      kind: name of the mixer.
      options: of the mixer.
      **more: other fields of the config.
    """
    if "mlps" not in more:
        s.only("hidden_act", "swish", "silu")
        more["mlp_width"] = mlp_width(s, 4, 2 / 3, 256)
    s.only("elementwise_affine", True)
    s.only("attnres_block_size", None)
    s.ignored("use_l2warp", "pretraining_tp")  # of the loss, of its machines
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    fields = {
        "vocab_size": s.whole("vocab_size"),
        "width": width,
        "tie_embeddings": s.flag("tie_word_embeddings", False),
        "norm_eps": s.number("norm_eps", 1e-6),
        kind: options,
    }
    kinds = [kind] * depth
    attention, places = _attention(s, depth, width)
    if attention is not None:
        fields["attention"] = attention
        for place in places:
            kinds[place] = "attention"
    pattern, repeats = patterns.shortest(kinds)
    fields |= {"pattern": pattern, "repeats": repeats} | more
    return config_lib.Config(**fields)


def rwkv_config(
    s: settings_lib.Settings,
    kind: str,
    options: layers.Options,
    *,
    heads: int,
    ratio: float,
) -> config_lib.Config:
    """The config of an RWKV model: layer norms, its own channel mixing.

    Args:
      s: the settings.
      kind: name of the mixer.
      options: of the mixer.
      heads: of the mixer.
      ratio: of the hidden width to the width, where it is not said.
    """
    s.only("norm_bias", True)
    s.only("hidden_act", "sqrelu")
    return config(
        s,
        kind,
        options,
        heads=heads,
        mlp_width=mlp_width(s, ratio, 1, 32),
        mlps=("rwkv_channels",),
        rwkv_channels=layers.RWKVChannelsOptions(gated=kind == "rwkv6"),
        norm="layer",
        norm_eps=s.number("norm_eps", 1e-5),
        embedding_norm=s.flag("norm_first", True),
    )


def mlp_width(
    s: settings_lib.Settings, ratio: float, factor: float, multiple: int
) -> int:
    """The hidden width, which follows from the ratio where it is not said."""
    wide = s.whole("hidden_size") * s.number("hidden_ratio", ratio) * factor
    return s.whole("intermediate_size", -(-int(wide) // multiple) * multiple)


def conv_width(s: settings_lib.Settings, default: bool) -> int | None:
    """Width of the short convolutions, None without."""
    width = s.whole("conv_size", 4)
    if not s.flag("use_short_conv", default):
        s.ignored("share_conv_kernel")
        return None
    s.only("share_conv_kernel", False)
    return width


def _attention(
    s: settings_lib.Settings, depth: int, width: int
) -> tuple[layers.AttentionOptions | None, list[int]]:
    """Softmax attention in some of the layers, and which."""
    inner = s.group("attn")
    if inner is None:
        return None, []
    places = inner.places("layers", depth)
    heads = inner.whole("num_heads")
    inner.only("qkv_bias", False)
    options = layers.AttentionOptions(
        heads=heads,
        head_dim=width // heads,
        key_value_heads=inner.whole("num_kv_heads", heads),
        window=inner.whole_or_none("window_size"),
        rotary_base=float(inner.number("rope_theta", 10000.0)),
    )
    s.include(inner)
    return options, places


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any], mixer: Mixer
) -> None:
    """The table of a model; `mixer(table, settings, config, layer)` is its."""
    bias = config.norm == "layer"
    own_channels = config.mlps == ("rwkv_channels",)
    t.same("embedding", "model.embeddings.weight")
    if config.tie_embeddings:
        t.twin("lm_head.weight", "model.embeddings.weight")
    else:
        t.same("unembedding", "lm_head.weight")
    t.norm("final_norm", "model.norm", bias)
    if config.embedding_norm:
        t.norm("embedding_norm", "model.layers.0.pre_norm", bias)
    for kind in {"hgrn", "hgrn2"} & set(config.pattern):
        if getattr(config, kind).use_lower_bound:
            t.same(f"{kind}_lower_bounds", "model.lower_bounds")
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "attn_norm", bias)
        inner = block.under("mixer/", "attn.")
        if kind == "attention":
            for name in ("query", "key", "value"):
                inner.linear(name, f"{name[0]}_proj")
            inner.linear("out", "o_proj", inputs=2)
        else:
            mixer(inner, s, config, layer)
        if own_channels:
            block.norm("mlp_norm", "ffn_norm", bias)
            _rwkv_channels(block.under("mlp/", "ffn."), config)
        else:
            block.norm("mlp_norm", "mlp_norm", bias)
            for name in ("gate", "up", "down"):
                block.linear(f"mlp/{name}", f"mlp.{name}_proj")


def _rwkv_channels(t: tables.Table, config: config_lib.Config) -> None:
    if config.rwkv_channels.gated:
        for name in ("key", "receptance"):
            t.same(f"mix_{name}", f"{name}.mu")
            t.linear(name, f"{name}.linear")
    else:
        t.same("mix_key", "x_k")
        t.linear("key", "key")
    t.linear("value", "value")


def query_key_value(
    t: tables.Table, options: Any, config: config_lib.Config, kind: str
) -> None:
    """The projections, one of ours, and their short convolutions, if any."""
    heads, key_dim, value_dim = options.expanded_sizes(config.host(kind))
    values = getattr(options, "value_heads", None) or heads
    writes = getattr(options, "writes", 1)
    parts = {
        "q": heads * key_dim,
        "k": writes * heads * key_dim,
        "v": writes * values * value_dim,
    }
    t.fused("qkv", {f"{name}_proj": size for name, size in parts.items()})
    if options.conv_width is not None:
        t.convolutions(
            "conv", {f"{name}_conv1d": size for name, size in parts.items()}
        )


def step_decay(t: tables.Table) -> None:
    """Decays as Gated DeltaNet has them."""
    t.linear("decay/step", "a_proj")
    t.same("decay/bias", "dt_bias")
    t.same("decay/A_log", "A_log")


def gated_norm(s: dict[str, Any], gated: bool) -> str:
    """Name of the output norm of GLA and RetNet."""
    if gated and s.get("fuse_norm", True):
        return "g_norm_swish_gate"
    return "g_norm"
