"""What the families of transformers have in common."""

from collections.abc import Mapping
from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import patterns
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables

# Layers that guess the tokens after the next one; the model runs without.
MORE_TOKENS = "the prediction of later tokens"


def rotary(
    s: settings_lib.Settings,
    head_dim: int,
    partial: float = 1.0,
    base: float = 10000.0,
) -> dict[str, Any]:
    """What an attention layer is told of its rotary positions.

    Newer files say it in a group of settings, older ones beside the others.

    Args:
      s: the settings.
      head_dim: width of a head.
      partial: share of it that is rotated, where it is not said.
      base: of the frequencies, where it is not said.
    """
    s.only("rope_scaling", None)
    names = "rope_theta", "partial_rotary_factor"
    said = {name: s.get(name, None) for name in names}
    inner = s.group("rope_parameters")
    if inner is None:
        inner = settings_lib.Settings({}, {})
    inner.fill({k: v for k, v in said.items() if v is not None})
    inner.only("rope_type", "default")
    # Of texts the places in time, height and width are the same.
    inner.ignored("mrope_interleaved", "mrope_section")
    base = inner.number("rope_theta", base)
    dim = int(head_dim * inner.number("partial_rotary_factor", partial))
    s.include(inner)
    return {
        "rotary_base": float(base),
        "rotary_dim": None if dim == head_dim else dim,
    }


def layer_types(
    s: settings_lib.Settings,
    names: Mapping[str, str],
    default: list[str],
    setting: str = "layer_types",
) -> list[str]:
    """A name of ours for each layer.

    Args:
      s: the settings.
      names: ours by theirs.
      default: theirs, where the setting is missing.
      setting: a list of theirs, one a layer.
    """
    types = s.get(setting, None)
    types = default if types is None else types
    if (
        not isinstance(types, list)
        or len(types) != len(default)
        or not all(isinstance(kind, str) and kind in names for kind in types)
    ):
        s.fault(
            f"{setting} = {types} is not supported; it must be a list of "
            f"{len(default)} of {sorted(names)}"
        )
        types = default
    return [names[name] for name in types]


def pattern(
    kinds: list[str], mlps: list[str] | None = None, **by_kind: dict[str, str]
) -> dict[str, Any]:
    """The fields of a config that say which layers there are.

    Args:
      kinds: mixer of each layer.
      mlps: channel mixer of each layer; None for SwiGLU in all.
      **by_kind: other fields that name something for each place, as a map from
        the mixers.
    """
    each = list(zip(kinds, mlps or ["swiglu"] * len(kinds), strict=True))
    found, repeats = patterns.shortest(each)
    places = tuple(kind for kind, _ in found)
    return {
        "pattern": places,
        "mlps": tuple(mlp for _, mlp in found),
        "repeats": repeats,
    } | {
        name: tuple(map(chosen.__getitem__, places))
        for name, chosen in by_kind.items()
    }


def ends(
    t: tables.Table,
    config: config_lib.Config,
    embedding: str = "model.embed_tokens",
    norm: str = "model.norm",
    head: str = "lm_head",
) -> None:
    """Embedding, final norm and output weights."""
    t.same("embedding", f"{embedding}.weight")
    if config.tie_embeddings:
        t.twin(f"{head}.weight", f"{embedding}.weight")
    else:
        t.same("unembedding", f"{head}.weight")
    t.norm("final_norm", norm, config.norm == "layer")


def swiglu(
    t: tables.Table,
    ours: str = "mlp",
    theirs: str = "mlp",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
) -> None:
    """The three maps of a gated MLP."""
    for name, module in zip(("gate", "up", "down"), names, strict=True):
        t.linear(f"{ours}/{name}", f"{theirs}.{module}", bias=bias)


def attention(t: tables.Table, bias: bool = False, out: bool = False) -> None:
    """The maps of softmax attention; with biases, of the output with `out`."""
    for name in ("query", "key", "value"):
        t.linear(name, f"{name[0]}_proj", bias=bias)
    t.linear("out", "o_proj", inputs=2, bias=out)


def delta_net(
    s: settings_lib.Settings, **defaults: int | None
) -> layers.GatedDeltaNetOptions:
    """Gated DeltaNet as Qwen and OLMo name its sizes.

    Args:
      s: the settings.
      **defaults: key_heads, value_heads, key_dim and value_dim; what is None or
        not named must be said.
    """

    def size(setting: str, name: str) -> int:
        known = defaults.get(name)
        if known is None:
            return s.whole(setting)
        return s.whole(setting, known)

    key_dim = size("linear_key_head_dim", "key_dim")
    return layers.GatedDeltaNetOptions(
        heads=size("linear_num_key_heads", "key_heads"),
        head_dim=key_dim,
        value_heads=size("linear_num_value_heads", "value_heads"),
        value_expand=size("linear_value_head_dim", "value_dim") / key_dim,
        conv_width=s.whole("linear_conv_kernel_dim", 4),
    )


def every(depth: int, period: int) -> list[str]:
    """Full attention in each last layer of `period`, linear in the others."""
    return [
        "linear_attention" if (layer + 1) % period else "full_attention"
        for layer in range(depth)
    ]
