"""RWKV-6 of flash-linear-attention (`model_type` rwkv6)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    options = layers.RWKV6Options(
        key_expand=s.number("expand_k", 0.5),
        value_expand=s.number("expand_v", 1.0),
        mix_rank=s.whole("proj_low_rank_dim", 32),
        decay_rank=s.whole("gate_low_rank_dim", 64),
        group_eps=s.number("norm_eps", 1e-5),
    )
    heads = s.whole("num_heads")
    return fla.rwkv_config(s, "rwkv6", options, heads=heads, ratio=3.5)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    theirs, ours, rank = "rwkvg", "wkvrg", config.rwkv6.mix_rank
    width = config.width
    for to, stream in enumerate(ours):
        at = theirs.index(stream)
        t.link(
            "x_bias",
            (5, width),
            f"mix_{stream}",
            part=tables.Part(0, at, at + 1),
            region=(width,),
        )
        t.link(
            "x_proj.0.linear.weight",
            (5 * rank, width),
            "mix_in/kernel",
            part=tables.Part(0, at * rank, (at + 1) * rank),
            order=(1, 0),
            index=(0, to * rank),
        )
        t.link(
            "x_proj.2.weight",
            (width, 5 * rank),
            "mix_out_kernel",
            (width, 5, rank),
            part=tables.Part(1, at, at + 1),
            order=(1, 2, 0),
            index=(to, 0, 0),
        )
    t.same("mix_x", "x_proj.0.mu")
    t.linear("decay_in", "w_proj.linear.lora.0")
    t.linear("decay", "w_proj.linear.lora.2", bias=True)
    t.same("bonus", "bonus")
    for name in ("receptance", "key", "value", "gate"):
        t.linear(name, f"{name[0]}_proj.linear")
    t.norm("norm", "g_norm", bias=True)
    t.linear("out", "o_proj", inputs=2)
