"""Layers inside one block of another project's model, with its parameters.

Each case is a block of a random checkpoint: its tensors under their own names,
its input and its output.  The norms and the channel mixer around our layer are
written out in numpy; what the layer adds must be what theirs added.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from seqjax import layers
from seqjax.layers import rwkv7

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
H, D, K = 2, 32, 16  # of all but xLSTM, which has D = 64


class Tensors(NamedTuple):
    """The tensors of a block, read under the prefix of their mixer."""

    family: str
    prefix: str = "attn."

    def __getitem__(self, name):
        return _file()[f"{self.family}/{self.prefix}{name}"]

    def map(self, name):
        """A linear map, [in, out]."""
        return {"kernel": self[f"{name}.weight"].T}

    def heads(self, name):
        """A linear map into heads, [in, H, out]."""
        weight = self[f"{name}.weight"]
        return {"kernel": weight.T.reshape(weight.shape[1], H, -1)}

    def out(self, name="o_proj"):
        weight = self[f"{name}.weight"]
        return {"kernel": weight.T.reshape(H, -1, weight.shape[0])}

    def per_head(self, name):
        return self[name].reshape(H, -1)

    def norm(self, name):
        return {"scale": self[f"{name}.weight"]}

    def head_norm(self, name, *, bias=True):
        found = {"scale": self.per_head(f"{name}.weight")}
        if bias:
            found["bias"] = self.per_head(f"{name}.bias")
        return found

    def named(self, read, **names):
        """{ours: theirs} -> {ours: parameters}."""
        return {ours: read(theirs) for ours, theirs in names.items()}

    def query_key_value(self, *, conv):
        found = {"qkv": self._joined(lambda n: self[f"{n}_proj.weight"].T)}
        found["qkv"] = {"kernel": found["qkv"]}
        if conv:
            weight = self._joined(lambda n: self[f"{n}_conv1d.weight"][:, 0].T)
            found["conv"] = {"weight": weight}
        return found

    def _joined(self, read):
        return np.concatenate([read(name) for name in "qkv"], axis=1)


@functools.cache
def _file():
    with np.load(GOLDEN / "layers.npz") as arrays:
        return dict(arrays)


def _gla(t):
    decay = t.map("gk_proj.1") | {"bias": t["gk_proj.1.bias"]}
    return layers.GLA(H, 8, K, eps=1e-6), t.query_key_value(conv=False) | {
        "decay_in": t.map("gk_proj.0"),
        "decay": decay,
        "gate": t.heads("g_proj"),
        "norm": t.norm("g_norm_swish_gate"),
        "out": t.out(),
    }


def _hgrn(t):
    names = {"value": "i", "forget": "f", "gate": "g", "out": "o"}
    names = {ours: f"{theirs}_proj" for ours, theirs in names.items()}
    params = t.named(t.map, **names) | {"norm": t.norm("g_norm")}
    return layers.HGRN(D, eps=1e-6), params


def _hgrn2(t):
    return layers.HGRN2(H, K, K), t.named(
        t.heads, query="q_proj", forget="f_proj", value="i_proj"
    ) | {"norm": t.norm("g_norm"), "out": t.out()}


def _delta(t, layer, **more):
    return layer, t.query_key_value(conv=True) | {
        "beta": t.map("b_proj"),
        "norm": t.norm("o_norm"),
        "out": t.out(),
    } | more


def _decayed(t, layer, **more):
    decay = {"step": t.map("a_proj"), "bias": t["dt_bias"]}
    return _delta(
        t,
        layer,
        decay=decay | {"A_log": t["A_log"]},
        gate=t.heads("g_proj"),
        **more,
    )


def _kda(t):
    decay = {"inner": t.map("f_proj.0"), "step": t.heads("f_proj.1")}
    return _delta(
        t,
        layers.KDA(H, K, K, gate_rank=K, eps=1e-6),
        decay=decay | {"bias": t.per_head("dt_bias"), "A_log": t["A_log"]},
        gate_in=t.map("g_proj.0"),
        gate=t.map("g_proj.1") | {"bias": t["g_proj.1.bias"]},
    )


def _comba(t):
    layer = layers.Comba(H, K, K, eps=1e-6)
    return _decayed(t, layer, D=t["D"], inner_decay=t["decay"])


def _retnet(t):
    return layers.RetNet(H, K, eps=1e-6), t.named(
        t.heads, query="q_proj", key="k_proj", value="v_proj", gate="g_proj"
    ) | {"norm": t.norm("g_norm_swish_gate"), "out": t.out()}


def _linear(t):
    parts = {
        "weight": "layer1.weight",
        "bias": "layer1.bias",
        "second_weight": "layer2.weight",
        "second_bias": "layer2.bias",
    }
    maps = {
        f"{ours}_map": {
            name: t[f"feature_map_{theirs}.{part}"]
            for name, part in parts.items()
        }
        for ours, theirs in (("query", "q"), ("key", "k"))
    }
    return layers.LinearAttention(H, K, K, eps=1e-6), t.named(
        t.heads, query="q_proj", key="k_proj", value="v_proj"
    ) | maps | {"norm": t.norm("norm"), "out": t.out()}


def _gsa(t):
    # Its inner norm keeps torch's eps, as HGRN2's does.
    return layers.GSA(H, K, K, slots=16), t.query_key_value(conv=False) | {
        "decay": t.heads("f_proj"),
        "norm": t.norm("g_norm"),
        "out": t.out(),
    }


def _rwkv6(t):
    theirs, ours = "rwkvg", "wkvrg"
    order = [theirs.index(stream) for stream in ours]
    inner = t["x_proj.0.linear.weight"].reshape(5, 8, D)[order]
    outer = t["x_proj.2.weight"].reshape(D, 5, 8)[:, order]
    params = t.named(
        t.heads,
        receptance="r_proj.linear",
        key="k_proj.linear",
        value="v_proj.linear",
        gate="g_proj.linear",
        decay="w_proj.linear.lora.2",
    )
    params["decay"]["bias"] = t.per_head("w_proj.linear.lora.2.bias")
    params |= {f"mix_{s}": t["x_bias"][theirs.index(s)] for s in ours}
    params |= {
        "mix_x": t["x_proj.0.mu"],
        "mix_in": {"kernel": inner.reshape(40, D).T},
        "mix_out_kernel": outer.transpose(1, 2, 0),
        "decay_in": t.map("w_proj.linear.lora.0"),
        "bonus": t["bonus"],
        "norm": t.head_norm("g_norm"),
        "out": t.out(),
    }
    return layers.RWKV6(D, H, 8, K, 8, 8, group_eps=1e-5), params


def _rwkv7(t):
    params = t.named(t.heads, receptance="r_proj", key="k_proj", value="v_proj")
    params |= {f"mix_{s}": t[f"x_{s}"].reshape(-1) for s in "rwkvag"}
    for ours, theirs in (("decay", "w"), ("rate", "a"), ("gate", "g")):
        params[f"{ours}_in"] = t.map(f"{theirs}_lora.lora.0")
        params[ours] = t.heads(f"{theirs}_lora.lora.2")
        if ours != "gate":
            bias = t.per_head(f"{theirs}_lora.lora.2.bias")
            params[ours]["bias"] = bias
    params |= t.named(t.per_head, key_scale="k_k", key_rate="k_a", bonus="r_k")
    params |= {"norm": t.head_norm("g_norm"), "out": t.out()}
    ranks = rwkv7.Ranks(8, 8, 8, 8)
    return layers.RWKV7(D, H, K, K, ranks, group_eps=K * 1e-5), params


def _rwkv4(t):
    params = t.named(
        t.map, key="key", value="value", receptance="receptance", out="output"
    )
    for name in ("key", "value", "receptance"):
        params[f"mix_{name}"] = t[f"time_mix_{name}"].reshape(-1)
    params |= {"decay": t["time_decay"], "bonus": t["time_first"]}
    return layers.RWKV4(D, D), params


def _mlstm(t):
    params = t.named(
        t.heads, query="q", key="k", value="v", gate="ogate_preact"
    )
    for name in ("input", "forget"):
        theirs = f"{name[0]}gate_preact"
        bias = {"bias": t[f"{theirs}.bias"]}
        params[f"{name}_gate"] = t.map(theirs) | bias
    params["norm"] = t.head_norm("multihead_norm", bias=False)
    params["out"] = t.out("out_proj")
    return layers.MLSTM(H, 32, 32, eps=1e-6), params


GATED = layers.DeltaNet(H, K, K, decay=True, output_gate=True, eps=1e-6)
PRODUCT = layers.GatedDeltaProduct(H, K, K, negative_eigenvalues=True, eps=1e-6)
CASES = {
    "gla": _gla,
    "hgrn": _hgrn,
    "hgrn2": _hgrn2,
    "delta_net": lambda t: _delta(t, layers.DeltaNet(H, K, K, eps=1e-6)),
    "gated_deltanet": lambda t: _decayed(t, GATED),
    "gated_deltaproduct": lambda t: _decayed(t, PRODUCT),
    "kda": _kda,
    "comba": _comba,
    "retnet": _retnet,
    "linear_attn": _linear,
    "gsa": _gsa,
    "rwkv6": _rwkv6,
    "rwkv7": _rwkv7,
    "rwkv": _rwkv4,
    "xlstm": _mlstm,
}


def _silu(x):
    return x / (1 + np.exp(-x))


def _norm(t, x, name):
    """RMS norm, or layer norm where there is a bias."""
    bias = _file().get(f"{t.family}/{name}.bias")
    if bias is None:
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * t[f"{name}.weight"]
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * t[f"{name}.weight"] + bias


def _swiglu(t, x, gate="gate_proj", up="up_proj", down="down_proj"):
    gate, up, down = (t[f"{name}.weight"].T for name in (gate, up, down))
    return (_silu(x @ gate) * (x @ up)) @ down


def _rwkv_channels(t, x):
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    if t.family == "rwkv":
        mu = [t[f"time_mix_{n}"].reshape(-1) for n in ("key", "receptance")]
        key, gate = (x * m + before * (1 - m) for m in mu)
    else:
        names = ["x_k"] if t.family == "rwkv7" else ["key.mu", "receptance.mu"]
        key, gate = (x + (before - x) * t[n] for n in (names * 2)[:2])
    linear = "linear." if t.family == "rwkv6" else ""
    y = np.maximum(key @ t[f"key.{linear}weight"].T, 0) ** 2
    y = y @ t["value.weight"].T
    if t.family == "rwkv7":
        return y
    return y / (1 + np.exp(-gate @ t[f"receptance.{linear}weight"].T))


@pytest.mark.parametrize("family", CASES)
def test_block_of_another_project(family):
    block = Tensors(family, "")
    prefix, norms, mixed = {
        "rwkv": ("attention.", ("ln1", "ln2"), "feed_forward."),
        "xlstm": ("mlstm_layer.", ("norm_mlstm", "norm_ffn"), "ffn."),
        "rwkv6": ("attn.", ("attn_norm", "ffn_norm"), "ffn."),
        "rwkv7": ("attn.", ("attn_norm", "ffn_norm"), "ffn."),
    }.get(family, ("attn.", ("attn_norm", "mlp_norm"), "mlp."))
    layer, params = CASES[family](Tensors(family, prefix))
    x = block["input"].astype(np.float64)
    if family in ("rwkv6", "rwkv7"):  # the first block normalises twice
        x = _norm(block, x, "pre_norm")
    normed = _norm(block, x, norms[0]).astype(np.float32)[None]
    shapes = jax.eval_shape(layer.init, jax.random.key(0), normed)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    y, _ = jax.jit(layer.apply)({"params": params}, normed)
    y = x + np.asarray(y[0], np.float64)
    channels = _norm(block, y, norms[1])
    inner = Tensors(family, mixed)
    if family.startswith("rwkv"):
        y = y + _rwkv_channels(inner, channels)
    elif family == "xlstm":
        y = y + _swiglu(inner, channels, "proj_up_gate", "proj_up", "proj_down")
    else:
        y = y + _swiglu(inner, channels)
    added = block["output"] - x
    error = np.linalg.norm(y - block["output"]) / np.linalg.norm(added)
    assert error < 2e-6
