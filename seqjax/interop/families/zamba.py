"""Zamba of transformers (`model_type` zamba), and what Zamba2 takes.

Every hybrid layer is a Mamba layer with a block of attention and MLP before it,
whose weights all of them share; the first hybrid layer holds them in the file.
"""

from collections.abc import Iterator
import math
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import patterns
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import state_space

_NAME = "shared_transf"
_TYPES = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    s.only("hidden_mamba_act", "silu")
    state_space.ignore(s, "time_step_min")
    period = s.whole("attn_layer_period", 6)
    offset = s.count("attn_layer_offset", 4)
    later = ["mamba", "hybrid"]
    types = ["mamba", "mamba", "hybrid"]
    types += [later[i % period == offset] for i in range(depth - 3)]
    groups, expand = s.whole("n_mamba_heads", 2), s.number("mamba_expand", 2)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=s.whole("num_attention_heads"),
        mlp_width=s.whole("intermediate_size"),
        tie_embeddings=s.flag("tie_word_embeddings", True),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        mamba=layers.MambaOptions(
            expand=expand,
            step_rank=state_space.whole_or_auto(
                s, "mamba_dt_rank", math.ceil(width / 16)
            ),
            state_size=s.whole("mamba_d_state", 16),
            conv_width=s.whole("mamba_d_conv", 4),
            conv_bias=s.flag("mamba_conv_bias", True),
            use_bias=s.flag("mamba_proj_bias", False),
            groups=groups,
        ),
        shared_block=block(s, width, rotary_base=None),
        **places(s, types[:depth], "mamba"),
    )


def block(
    s: settings_lib.Settings, width: int, **positions: Any
) -> layers.SharedBlockOptions:
    """The shared block; `positions` are what attention is told of them."""
    heads = s.whole("num_attention_heads")
    if s.whole("attention_hidden_size", 2 * width) != 2 * width:
        s.fault(
            f"attention_hidden_size = {s.get('attention_hidden_size')} is not "
            f"supported; it must be {2 * width}, twice hidden_size"
        )
    act = s.only("hidden_act", "gelu", "silu", "relu")
    return layers.SharedBlockOptions(
        attention=layers.AttentionOptions(
            head_dim=s.whole("attention_head_dim", 2 * width // heads),
            key_value_heads=s.whole("num_key_value_heads", heads),
            **positions,
        ),
        mlp=layers.SwiGLUOptions(activation=act),
    )


def places(
    s: settings_lib.Settings, default: list[str], mixer: str, blocks: int = 1
) -> dict[str, Any]:
    """The fields of a config that say where which shared block stands.

    Args:
      s: the settings.
      default: type of each layer, where the setting is missing.
      mixer: of all layers.
      blocks: how many there are; the hybrid layers take turns.
    """
    types = common.layer_types(s, _TYPES, default, "layers_block_type")
    hybrid = [i for i, name in enumerate(types) if name == "hybrid"]
    if len(hybrid) < blocks:
        s.fault(
            f"layers_block_type with {len(hybrid)} hybrid layers is not "
            f"supported; there must be at least one for each of {blocks} "
            "shared blocks"
        )
    shared: list[int | None] = [None] * len(types)
    for count, layer in enumerate(hybrid):
        shared[layer] = count % blocks
    found, repeats = patterns.shortest(shared)
    return {
        "pattern": (mixer,) * len(found),
        "mlps": ("none",),
        "shared_blocks": found,
        "repeats": repeats,
    }


def holders(config: config_lib.Config, name: str) -> list[str]:
    """For each shared block its prefix in the layer that the file has it in."""
    found = uses(config)
    return [
        f"model.layers.{found.index(index)}.{name}."
        for index in config.shared_uses()
    ]


def uses(config: config_lib.Config) -> list[int | None]:
    """The shared block of each layer."""
    size = len(config.pattern)
    return [config.shared(layer % size) for layer in range(config.depth)]


def twins(
    t: tables.Table, config: config_lib.Config, name: str, holders: list[str]
) -> None:
    """Files may have a block again in each of its layers."""
    for layer, index in enumerate(uses(config)):
        if index is None:
            continue
        again, holder = f"model.layers.{layer}.{name}.", holders[index]
        held = {
            link.theirs.removeprefix(holder)
            for link in t.links
            if again != holder
            and link.theirs
            and link.theirs.startswith(holder)
        }
        for tensor in sorted(held):
            t.twin(f"{again}{tensor}", f"{holder}{tensor}")


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_layernorm")
    found = holders(config, _NAME)
    for index, holder in enumerate(found):
        shared = t.under(f"shared_{index}/", holder)
        norms_and_attention(shared)
        common.swiglu(shared, "mlp", "feed_forward")
    twins(t, config, _NAME, found)
    for mixer in mixers(t, config):
        _mamba(mixer, config.mamba)


def mixers(
    t: tables.Table, config: config_lib.Config
) -> Iterator[tables.Table]:
    """The table of each layer's mixer, once the rest of the layer is in."""
    for layer, _, outer in t.layers(config, "model.layers.{}."):
        inner = outer
        if config.shared(layer % len(config.pattern)) is not None:
            outer.linear("shared/out", "linear")
            inner = outer.under("", "mamba_decoder.")
        inner.norm("mixer_norm", "input_layernorm")
        yield inner.under("mixer/", "mamba.")


def norms_and_attention(t: tables.Table) -> None:
    """What Zamba and Zamba2 name alike in a shared block."""
    t.norm("attention_norm", "input_layernorm")
    t.norm("mlp_norm", "pre_ff_layernorm")
    common.attention(t.under("attention/", "self_attn."))


def _mamba(t: tables.Table, options: layers.MambaOptions) -> None:
    """A Mamba layer whose heads, groups of ours, have tensors together."""
    width, wide = t.size("out/kernel")[::-1]
    groups, size = options.groups, options.state_size
    channels, rank = wide // groups, t.size("dt/kernel")[-2]
    # Rows of u and z take turns in their projection.
    t.link(
        "in_proj.weight",
        (2 * wide, width),
        "in/kernel",
        (wide, 2, width),
        order=(2, 1, 0),
    )
    if options.use_bias:
        t.link("in_proj.bias", (2 * wide,), "in/bias", (wide, 2), order=(1, 0))
    t.convolutions("conv", {"conv1d": wide})
    if options.conv_bias:
        t.same("conv/bias", "conv1d.bias")
    for ours, theirs, shape in (
        ("select", "x_proj_weight", (groups, rank + 2 * size, channels)),
        ("dt", "dt_proj_weight", (groups, channels, rank)),
    ):
        t.link(theirs, shape, f"{ours}/kernel", order=(0, 2, 1))
    t.same("dt/bias", "dt_proj_bias", (groups, channels))
    t.same("A_log", "A_log", (groups, channels, size))
    t.same("D", "D", (groups, channels))
    t.linear("out", "out_proj", bias=options.use_bias)
