"""MiniMax-Text-01 (`model_type` minimax): transformers' files and MiniMax's.

They differ in the names of settings, and MiniMax's own (`model_type`
minimax_text_01) hold no constants.

The norms are part of the residual stream.  Lightning attention's decays
are constants of the layer, and its files hold them: they are compared with ours
and written again.
"""

from collections.abc import Callable
import functools
from typing import Any

import numpy as np

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common
from seqjax.interop.families import experts

_KINDS = {"linear_attention": "lightning", "full_attention": "attention"}
_EXPERT = ("w1", "w3", "w2")
_OWN = "minimax_text_01"


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    width, depth = s.whole("hidden_size"), s.whole("num_hidden_layers")
    heads = s.whole("num_attention_heads")
    head_dim = s.whole("head_dim", width // heads)
    rotated = s.whole("rotary_dim", head_dim)
    s.only("hidden_act", "silu")
    s.only("sliding_window", None)
    s.ignored("attention_dropout", "router_jitter_noise")
    s.ignored("output_router_logits", "router_aux_loss_coef")  # of the loss
    s.whole("block_size", 256)
    own = s.get("model_type", None) == _OWN
    if own:
        s.only("postnorm", True)
        s.only("shared_intermediate_size", 0)
        s.ignored("shared_moe_mode")
    scales = {}
    for name in ("alpha", "beta"):
        form = f"layernorm_{{}}_{name}" if own else f"{{}}_{name}_factor"
        first = form.format("mlp")
        scales[name] = s.number(first, 1)
        for kind in ("full", "linear"):
            setting = form.format(
                f"{kind}_attention" if own else f"{kind}_attn"
            )
            if s.number(setting, 1) != scales[name]:
                s.fault(
                    f"{setting} = {s.get(setting, 1)} is not supported; it "
                    f"must be {first}, {scales[name]}"
                )
    default = [
        "linear_attention" if layer % 2 else "full_attention"
        for layer in range(depth)
    ]
    if own:
        full = s.listed("attn_type_list", [0, 1], depth)
        default = [("linear_attention", "full_attention")[i] for i in full]
    kinds = common.layer_types(s, _KINDS, default)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=heads,
        head_dim=head_dim,
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("rms_norm_eps", 1e-5),
        norm_places=("stream",),
        stream_scale=scales["alpha"],
        branch_scale=scales["beta"],
        lightning=layers.LightningOptions(eps=1e-6),
        attention=layers.AttentionOptions(
            key_value_heads=s.whole("num_key_value_heads", heads),
            **common.rotary(s, head_dim, rotated / head_dim, base=1e6),
        ),
        moe=layers.MoEOptions(
            experts=s.whole("num_local_experts"),
            active=s.whole("num_experts_per_tok", 2),
            width=s.whole("intermediate_size"),
        ),
        **common.pattern(kinds, ["moe"] * depth),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config)
    for layer, kind, block in t.layers(config, "model.layers.{}."):
        block.norm("mixer_norm", "input_layernorm")
        block.norm("mlp_norm", "post_attention_layernorm")
        inner = block.under("mixer/", "self_attn.")
        if kind == "attention":
            common.attention(inner)
        else:
            _lightning(inner)
            if s["model_type"] != _OWN:
                _constants(inner, layer, config.depth, s)
        inner = block.under("mlp/", "block_sparse_moe.")
        inner.linear("router", "gate")
        experts.separate(inner, names=_EXPERT)


def _lightning(t: tables.Table) -> None:
    width, heads, dim = t.size("query/kernel")
    for part, ours in enumerate(("query", "key", "value")):
        t.link(
            "qkv_proj.weight",
            (3 * heads * dim, width),
            f"{ours}/kernel",
            (heads, 3, dim, width),
            part=tables.Part(1, part, part + 1),
            order=(3, 0, 1, 2),
        )
    t.linear("gate", "output_gate")
    t.norm("norm", "norm")
    t.linear("out", "out_proj", inputs=2)


def _constants(
    t: tables.Table, layer: int, depth: int, s: dict[str, Any]
) -> None:
    """The decays of a layer, and their powers inside a block of theirs."""
    heads, block = s["num_attention_heads"], s.get("block_size", 256)
    shapes = {
        "slope_rate": (heads, 1, 1),
        "query_decay": (heads, block, 1),
        "key_decay": (heads, block, 1),
        "diagonal_decay": (1, heads, block, block),
    }
    for name, shape in shapes.items():
        make = functools.partial(_MAKE[name], block)
        t.constant(
            name, shape, functools.partial(_made, make, layer, depth, heads)
        )


def _made(
    make: Callable[[np.ndarray], np.ndarray], layer: int, depth: int, heads: int
) -> np.ndarray:
    """Of float32 slopes [H, 1, 1], rounded as theirs are."""
    factor = 1 - layer / (depth - 1 + 1e-5) + 1e-5
    base = np.float32(2.0 ** (-8 / heads))
    slopes = base ** np.arange(1, heads + 1, dtype=np.float32)
    return make((slopes * np.float32(factor))[:, None, None])


def _exp(x: np.ndarray) -> np.ndarray:
    return np.exp(x.astype(np.float64)).astype(np.float32)


def _places(block: int) -> np.ndarray:
    return np.arange(1, block + 1, dtype=np.float32)[:, None]


def _diagonal(block: int, slopes: np.ndarray) -> np.ndarray:
    distance = _places(block) - _places(block).T
    steps = slopes * distance[None, None]
    return _exp(np.where(steps >= 0, -steps, -np.inf))


_MAKE = {
    "slope_rate": lambda block, slopes: slopes,
    "query_decay": lambda block, slopes: _exp(-slopes * _places(block)),
    "key_decay": lambda block, slopes: _exp(-slopes * (block - _places(block))),
    "diagonal_decay": _diagonal,
}
