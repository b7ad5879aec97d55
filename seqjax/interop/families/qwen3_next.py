"""Qwen3-Next of transformers (`model_type` qwen3_next)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts
from seqjax.interop.families import qwen3_5


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    depth, step = (
        s.whole("num_hidden_layers"),
        s.whole("decoder_sparse_step", 1),
    )
    dense = s.places("mlp_only_layers", depth, [])
    s.ignored("output_router_logits", "router_aux_loss_coef")  # of the loss
    mlps = [
        "swiglu" if layer in dense or (layer + 1) % step else "moe"
        for layer in range(depth)
    ]
    moe = layers.MoEOptions(
        experts=s.whole("num_experts"),
        active=s.whole("num_experts_per_tok"),
        width=s.whole("moe_intermediate_size"),
        shared_width=s.whole("shared_expert_intermediate_size"),
        shared_gate=True,
        renormalize=s.flag("norm_topk_prob", True),
    )
    return qwen3_5.frame(s, s.whole("intermediate_size"), mlps, moe=moe)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    t.aside("mtp", common.MORE_TOKENS)
    size = len(config.pattern)
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        qwen3_5.norms(block)
        if kind == "attention":
            qwen3_5.attention(block.under("mixer/", "self_attn."))
        else:
            inner = block.under("mixer/", "linear_attn.")
            _inputs(inner, config)
            qwen3_5.delta_net(inner)
        if config.mlp(layer % size) == "swiglu":
            common.swiglu(block)
        else:
            inner = block.under("mlp/", "mlp.")
            inner.linear("router", "gate")
            experts.separate(inner)
            common.swiglu(inner, "shared", "shared_expert")
            inner.linear("shared_gate", "shared_expert_gate")


def _inputs(t: tables.Table, config: config_lib.Config) -> None:
    """One after the other for each key head: q, k, its v and z; its b and a."""
    options = config.gated_delta_net
    heads, key_dim, value_dim = options.expanded_sizes(
        config.host("gated_delta_net")
    )
    values = (options.value_heads or heads) // heads
    ends = [0, key_dim, 2 * key_dim]
    ends += [ends[2] + values * value_dim, ends[2] + 2 * values * value_dim]
    width, column = config.width, 0
    for part in range(4):
        own = ends[part + 1] - ends[part]
        fused = part < 3
        t.link(
            "in_proj_qkvz.weight",
            (heads * ends[4], width),
            "qkv/kernel" if fused else "gate/kernel",
            (heads, ends[4], width),
            part=tables.Part(1, ends[part], ends[part + 1]),
            order=(2, 0, 1),
            index=(0, column) if fused else None,
            region=(width, heads * own) if fused else None,
        )
        column += heads * own
    for part, ours in enumerate(("beta", "decay/step")):
        t.link(
            "in_proj_ba.weight",
            (heads * 2 * values, width),
            f"{ours}/kernel",
            (heads, 2 * values, width),
            part=tables.Part(1, part * values, (part + 1) * values),
            order=(2, 0, 1),
        )
