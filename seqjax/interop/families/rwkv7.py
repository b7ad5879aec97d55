"""RWKV-7 of flash-linear-attention (`model_type` rwkv7)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import fla

# Our names of the low rank maps, their settings and tensors, and the first
# layer that has them.
_LOW_RANK = (
    ("decay", "decay_low_rank_dim", "w_lora", 0),
    ("rate", "a_low_rank_dim", "a_lora", 0),
    ("mixture", "v_low_rank_dim", "v_lora", 1),
    ("gate", "gate_low_rank_dim", "g_lora", 0),
)


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    head_dim = s.whole("head_dim", 64)
    heads = max(width // head_dim, 1)
    s.ignored("num_heads")  # head_dim goes before it, also where they differ
    values = s.get("value_dim", None) or width
    values = values if isinstance(values, list) else [values] * depth
    if (
        len(values) != depth
        or values != values[:1] * depth
        or type(values[0]) is not int
        or values[0] % heads
    ):
        s.fault(
            f"value_dim = {values} is not supported; it must be the same in "
            f"all {depth} layers and a multiple of {heads} heads"
        )
        values = [width]
    attn = s.group("attn")
    if attn is not None and 0 in attn.places("layers", depth):
        s.fault(
            "attn.layers = [0, ...] is not supported; the first layer must be "
            "RWKV-7, since later ones take values from it"
        )
    ranks = {}
    for ours, setting, lora, first in _LOW_RANK:
        tensor = f"model.layers.{first}.attn.{lora}.lora.0.weight"
        ranks[ours] = 32
        if depth > first:
            ranks[ours] = s.whole_or_axis(setting, tensor, 0)
    options = layers.RWKV7Options(
        head_dim=head_dim,
        value_expand=values[0] / width,
        decay_rank=ranks["decay"],
        rate_rank=ranks["rate"],
        value_rank=ranks["mixture"],
        gate_rank=ranks["gate"],
        group_eps=head_dim * s.number("norm_eps", 1e-5),
    )
    s.ignored("v_low_rank_dim")  # of a model of one layer
    return fla.rwkv_config(s, "rwkv7", options, heads=heads, ratio=4.0)


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    fla.tensors(t, config, s, _mixer)


def _mixer(t: tables.Table, s: Any, config: Any, layer: int) -> None:
    for stream in "rwkvag":
        t.same(f"mix_{stream}", f"x_{stream}", (1, 1, config.width))
    for ours, _, lora, first in _LOW_RANK:
        if layer >= first:
            t.linear(f"{ours}_in", f"{lora}.lora.0")
            t.linear(ours, f"{lora}.lora.2", bias=ours != "gate")
        elif config.pattern.count("rwkv7") * config.repeats > 1:
            t.absent(f"{ours}_in/kernel")
            t.absent(f"{ours}/kernel")
            t.absent(f"{ours}/bias")
    for name in ("receptance", "key", "value"):
        t.linear(name, f"{name[0]}_proj")
    t.flat("key_scale", "k_k")
    t.flat("key_rate", "k_a")
    t.same("bonus", "r_k")
    t.norm("norm", "g_norm", bias=True)
    t.linear("out", "o_proj", inputs=2)
