"""Zamba2 of transformers (`model_type` zamba2).

As Zamba, on Mamba-2; several shared blocks take turns, and each hybrid layer
has low-rank terms of its own, which the file lists with the block.
"""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import state_space
from seqjax.interop.families import zamba

_NAME = "shared_transformer"
_HEADS = {"query": "q", "key": "k", "value": "v"}
# Where the hybrid layers stand if that is not said.
_TYPES = (
    ["mamba"]
    + (["mamba"] * 5 + ["hybrid"]) * 7
    + (["mamba"] * 4 + ["hybrid"])
    + (["mamba"] * 3 + ["hybrid"])
    + ["mamba"] * 2
)


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    state_space.ignore(s)
    # What follows from the others, or says nothing of what is computed.
    s.ignored("ffn_hidden_size", "hybrid_layer_ids", "kv_channels")
    s.ignored("num_query_groups", "use_shared_mlp_adapter")
    s.only("add_bias_linear", False)
    s.only("time_step_limit", None)
    s.only("use_conv_bias", True)
    s.only("use_long_context", False)
    where = common.rotary(s, s.whole("attention_head_dim", 2 * width // heads))
    if not s.flag("use_mem_rope", False):
        where = {"rotary_base": None}
    block = zamba.block(s, width, **where)
    block.adapter_rank = s.whole("adapter_rank", 128)
    block.attention_adapters = s.flag("use_shared_attention_adapter", False)
    expand, mamba_heads = (
        s.number("mamba_expand", 2),
        s.whole("n_mamba_heads", 8),
    )
    head_dim = s.whole("mamba_headdim", round(expand * width) // mamba_heads)
    state_space.check_heads(s, expand * width, mamba_heads, head_dim)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        mlp_width=s.whole("intermediate_size", 4 * width),
        tie_embeddings=s.flag("tie_word_embeddings", True),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        mamba2=layers.Mamba2Options(
            eps=1e-5,
            expand=expand,
            head_dim=head_dim,
            state_size=s.whole("mamba_d_state", 64),
            groups=s.whole("mamba_ngroups", 1),
            conv_width=s.whole("mamba_d_conv", 4),
            # As their full pass: a single step of theirs has no bound.
            smallest_step=s.number("time_step_min", 0.001),
        ),
        shared_block=block,
        **zamba.places(
            s, _types(depth), "mamba2", s.whole("num_mem_blocks", 1)
        ),
    )


def _types(depth: int) -> list[str]:
    return (_TYPES + ["mamba"] * depth)[:depth]


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, norm="model.final_layernorm")
    holders = zamba.holders(config, _NAME)
    for index, holder in enumerate(holders):
        shared = t.under(f"shared_{index}/", holder)
        zamba.norms_and_attention(shared)
        mlp = shared.under("mlp/", "feed_forward.")
        inputs, width = mlp.size("up/kernel")
        for name, start in (("gate", 0), ("up", width)):
            mlp.link(
                "gate_up_proj.weight",
                (2 * width, inputs),
                f"{name}/kernel",
                part=tables.Part(0, start, start + width),
                order=(1, 0),
            )
        mlp.linear("down", "down_proj")
    for mixer in zamba.mixers(t, config):
        state_space.mamba2(mixer, config.mamba2)
    use, uses = 0, zamba.uses(config)
    for layer, _, block in t.layers(config, ""):
        index = uses[layer]
        if index is not None:
            _adapters(block.under("shared/", holders[index]), config, use)
            use += 1
    zamba.twins(t, config, _NAME, holders)


def _adapters(t: tables.Table, config: config_lib.Config, use: int) -> None:
    """The low-rank terms of one use, which the block's holder lists."""
    lists = {"mlp": f"feed_forward.gate_up_proj_adapter_list.{use}"}
    if config.shared_block.attention_adapters:
        for ours, theirs in _HEADS.items():
            lists[ours] = f"self_attn.linear_{theirs}_adapter_list.{use}"
    for ours, theirs in lists.items():
        t.linear(f"{ours}_adapter_in", f"{theirs}.0")
        t.linear(f"{ours}_adapter", f"{theirs}.1")
