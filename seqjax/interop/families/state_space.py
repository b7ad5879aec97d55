"""What the families with Mamba or Mamba-2 layers have in common."""

import json
import math
from typing import Any

from seqjax import layers
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables

# How parameters start, what a step is computed by, and terms of the loss.
_WITHOUT_EFFECT = (
    "attention_dropout",
    "chunk_size",
    "mamba_chunk_size",
    "num_logits_to_keep",
    "output_router_logits",
    "residual_in_fp32",  # the stream has the dtype of the computation
    "router_aux_loss_coef",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_scale",
    "use_associative_scan",
    "use_falcon_mambapy",
    "use_mamba_kernels",
    "use_mambapy",
    "use_mem_eff_path",
    "z_loss_coefficient",
)


def ignore(s: settings_lib.Settings, *more: str) -> None:
    """Settings that change nothing in what such a model computes."""
    s.ignored(*_WITHOUT_EFFECT, *more)


def whole_or_auto(s: settings_lib.Settings, name: str, default: int) -> int:
    """A whole number; "auto" or nothing stands for the default."""
    if s.get(name, "auto") == "auto":
        return default
    return s.whole(name)


def inner(
    s: settings_lib.Settings, width: int, expand: str, name: str
) -> float:
    """The inner width over the width; `name` comes before `expand`."""
    wide = s.whole(name, round(s.number(expand, 2) * width))
    return wide / width


def steps(s: settings_lib.Settings, name: str) -> dict[str, Any]:
    """The bounds of the time step, from a pair or null."""
    value = s.get(name, None)
    pair = value if value is not None else [0.0, math.inf]
    if isinstance(pair, list):
        # JSON has no infinity; transformers writes it as a tagged string.
        pair = [
            float(x["__float__"]) if isinstance(x, dict) else x for x in pair
        ]
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(type(x) in (int, float) for x in pair)
        or not 0 <= pair[0] <= pair[1]
    ):
        s.fault(
            f"{name} = {json.dumps(value)} is not supported; it must be a "
            "smallest step of at least 0 and a largest one"
        )
        pair = [0.0, math.inf]
    return {
        "smallest_step": pair[0],
        "largest_step": None if pair[1] == math.inf else pair[1],
    }


def attention_options(
    s: settings_lib.Settings, heads: int, head_dim: int, **positions: Any
) -> layers.AttentionOptions:
    """Softmax attention; `positions` are fields that speak of them."""
    bias = s.flag("attention_bias", False)
    return layers.AttentionOptions(
        head_dim=head_dim,
        key_value_heads=s.whole("num_key_value_heads", heads),
        use_bias=bias,
        use_out_bias=bias,
        **positions,
    )


def mamba2_options(
    s: settings_lib.Settings, width: int
) -> layers.Mamba2Options:
    """Mamba-2 as Bamba, Granite 4 and Falcon-H1 say it."""
    heads = s.whole("mamba_n_heads", 128)
    expand = inner(s, width, "mamba_expand", "mamba_d_ssm")
    head_dim = whole_or_auto(s, "mamba_d_head", round(expand * width) // heads)
    check_heads(s, expand * width, heads, head_dim)
    s.only("mamba_proj_bias", False)
    return layers.Mamba2Options(
        expand=expand,
        head_dim=head_dim,
        state_size=s.whole("mamba_d_state", 256),
        groups=s.whole("mamba_n_groups", 1),
        conv_width=s.whole("mamba_d_conv", 4),
        conv_bias=s.flag("mamba_conv_bias", True),
        **steps(s, "time_step_limit"),
    )


def check_heads(
    s: settings_lib.Settings, wide: float, heads: int, head_dim: int
) -> None:
    """Requires heads that fill the inner width."""
    if heads * head_dim != round(wide):
        s.fault(
            f"{heads} heads of {head_dim} are not supported; they must be the "
            f"inner width, {round(wide)}"
        )


def mamba(t: tables.Table, options: layers.MambaOptions) -> None:
    """A Mamba layer; the norms of its selection, if any, are the caller's."""
    t.linear("in", "in_proj", bias=options.use_bias)
    _convolution(t, options.conv_bias)
    t.linear("select", "x_proj")
    t.linear("dt", "dt_proj", bias=True)
    t.same("A_log", "A_log")
    t.same("D", "D")
    t.linear("out", "out_proj", bias=options.use_bias)


def mamba2(
    t: tables.Table, options: layers.Mamba2Options, out_bias: bool = False
) -> None:
    """A Mamba-2 layer; their projection in holds z, x, B, C and the step."""
    width, wide = t.size("in/kernel")
    heads = t.size("A_log")[0]
    shape = wide + heads, width
    for ours, start, stop in (("in", 0, wide), ("dt", wide, wide + heads)):
        t.link(
            "in_proj.weight",
            shape,
            f"{ours}/kernel",
            part=tables.Part(0, start, stop),
            order=(1, 0),
        )
    t.same("dt/bias", "dt_bias")
    _convolution(t, options.conv_bias)
    t.same("A_log", "A_log")
    t.same("D", "D")
    if options.norm != "none":
        t.norm("norm", "norm")
    t.linear("out", "out_proj", bias=out_bias)


def _convolution(t: tables.Table, bias: bool) -> None:
    t.convolutions("conv", {"conv1d": t.size("conv/weight")[1]})
    if bias:
        t.same("conv/bias", "conv1d.bias")
