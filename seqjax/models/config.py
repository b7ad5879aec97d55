"""What a language model is made of, as plain values.

The dataclass is not frozen, so that command-line overrides can write into it;
call `validate` once they have.
"""

import dataclasses
import difflib

import jax

from seqjax.layers import attention
from seqjax.layers import slopes as slopes_lib

PATTERN_NAMES = ("retnet", "lightning", "gla", "mamba2", "attention")
DTYPES = ("float32", "bfloat16", "float64")

_SIZES = (
    "vocab_size",
    "width",
    "repeats",
    "heads",
    "conv_width",
    "retnet_value_expand",
    "mamba2_expand",
    "mamba2_head_dim",
    "mamba2_state_size",
    "mamba2_groups",
)
_OPTIONAL_SIZES = ("key_value_heads", "head_dim", "mlp_width", "window")
_POSITIVE = ("gate_normalizer", "norm_eps")
_OPTIONAL_POSITIVE = ("rotary_base",)
_SWITCHES = ("tie_embeddings", "remat", "qk_norm")


@dataclasses.dataclass(unsafe_hash=True)
class LanguageModelConfig:
    """Sizes and choices of a `LanguageModel`.

    Attributes:
      vocab_size: number of token ids.
      width: of the residual stream.
      pattern: the mixers of one repeat, first layer first.
      repeats: how often the pattern comes; depth is repeats * len(pattern).
      heads: of every mixer but mamba2.
      key_value_heads: of attention; None means as many as `heads`.
      head_dim: key width of a head of every mixer but mamba2; None means
        width / heads.
      mlp_width: hidden width of SwiGLU; None means 8/3 width, rounded up to a
        multiple of 64.
      tie_embeddings: whether the output projection is the embedding.
      remat: recompute each block in the backward pass.
      dtype: of the computation; parameters, gates, norm statistics, states
        and logits stay float32.  "float64" (a check, needs jax_enable_x64)
        widens all but the parameters.
      rotary_base: of the rotary angles of attention and retnet; None for
        attention without positions.
      window: tokens an attention layer sees, itself included; None for all.
      output_gate: sigmoid gate on what attention reads: "none", "headwise" or
        "elementwise".
      qk_norm: whether attention normalises queries and keys per head.
      slopes: decay table of lightning: "minimax", "tnl_code", "tnl_paper".
      gate_normalizer: divisor of the log gate of gla.
      conv_width: of the short convolutions of gla and mamba2.
      retnet_value_expand: value width of a retnet head over `head_dim`.
      mamba2_expand: inner width of mamba2 over `width`.
      mamba2_head_dim: channels of a mamba2 head.
      mamba2_state_size: N, states per channel.
      mamba2_groups: groups of heads that share B and C.
      norm_eps: added to the mean square in every norm.
    """

    vocab_size: int = 256
    width: int = 256
    pattern: tuple[str, ...] = ("gla", "gla", "gla", "attention")
    repeats: int = 1
    heads: int = 4
    key_value_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    tie_embeddings: bool = True
    remat: bool = False
    dtype: str = "float32"
    rotary_base: float | None = 10000.0
    window: int | None = None
    output_gate: str = "none"
    qk_norm: bool = False
    slopes: str = "minimax"
    gate_normalizer: float = 16.0
    conv_width: int = 4
    retnet_value_expand: int = 2
    mamba2_expand: int = 2
    mamba2_head_dim: int = 64
    mamba2_state_size: int = 128
    mamba2_groups: int = 1
    norm_eps: float = 1e-5

    @property
    def depth(self) -> int:
        """Number of layers, each a mixer and an MLP."""
        return self.repeats * len(self.pattern)

    @property
    def resolved_key_value_heads(self) -> int:
        """`key_value_heads`, or `heads` where it is None."""
        return (
            self.heads
            if self.key_value_heads is None
            else (self.key_value_heads)
        )

    @property
    def resolved_head_dim(self) -> int:
        """`head_dim`, or width / heads where it is None."""
        return (
            self.width // self.heads
            if self.head_dim is None
            else (self.head_dim)
        )

    @property
    def resolved_mlp_width(self) -> int:
        """`mlp_width`, or its default where it is None."""
        if self.mlp_width is not None:
            return self.mlp_width
        return -(-8 * self.width // (3 * 64)) * 64

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is accepted.

        Touches no device.
        """
        _check_pattern(self.pattern)
        _check_sizes(self)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("output_gate", self.output_gate, attention.OUTPUT_GATES)
        _check_choice("slopes", self.slopes, slopes_lib.SLOPES)
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                'dtype="float64" needs jax_enable_x64; turn it on '
                '(JAX_ENABLE_X64=1) or use "float32" or "bfloat16"'
            )
        if set(self.pattern) - {"mamba2"}:
            _check_heads(self)
        if "mamba2" in self.pattern:
            _check_mamba2(self)
        if "lightning" in self.pattern:
            slopes_lib.check(self.slopes, self.depth)


def _check_pattern(pattern: tuple[str, ...]) -> None:
    if not isinstance(pattern, tuple) or not pattern:
        raise ValueError(
            f"pattern must be a tuple of at least one of {PATTERN_NAMES}, "
            f"got {pattern!r}"
        )
    for name in pattern:
        if name not in PATTERN_NAMES:
            near = difflib.get_close_matches(str(name), PATTERN_NAMES, 1, 0.0)
            raise ValueError(
                f"pattern names {name!r}; accepted are {PATTERN_NAMES}, "
                f"the nearest is {near[0]!r}"
            )


def _check_sizes(config: LanguageModelConfig) -> None:
    for name in _SIZES + _OPTIONAL_SIZES:
        value = getattr(config, name)
        optional = name in _OPTIONAL_SIZES
        if optional and value is None:
            continue
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1"
                f"{' or None' if optional else ''}, got {value!r}"
            )
    for name in _POSITIVE + _OPTIONAL_POSITIVE:
        value = getattr(config, name)
        optional = name in _OPTIONAL_POSITIVE
        if optional and value is None:
            continue
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(
                f"{name} must be a finite number above 0"
                f"{' or None' if optional else ''}, got {value!r}"
            )
    for name in _SWITCHES:
        value = getattr(config, name)
        if type(value) is not bool:
            raise ValueError(f"{name} must be True or False, got {value!r}")


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, 1, 0.0)
        raise ValueError(
            f"{name} must be one of {accepted}, got {value!r}; "
            f"the nearest is {near[0]!r}"
        )


def _check_heads(config: LanguageModelConfig) -> None:
    if config.head_dim is None and config.width % config.heads:
        raise ValueError(
            f"width must be a multiple of heads, got width={config.width} and "
            f"heads={config.heads}; change one of them or set head_dim"
        )
    rotary = "retnet" in config.pattern or (
        "attention" in config.pattern and config.rotary_base is not None
    )
    if rotary and config.resolved_head_dim % 2:
        raise ValueError(
            f"rotary positions need an even head_dim, got "
            f"{config.resolved_head_dim} (width={config.width}, "
            f"heads={config.heads}); set head_dim to an even number"
        )
    if "retnet" in config.pattern and config.rotary_base is None:
        raise ValueError(
            "rotary_base must be a number where the pattern has retnet, got "
            "None; the paper's is 10000.0"
        )
    if "attention" in config.pattern and (
        config.heads % config.resolved_key_value_heads
    ):
        raise ValueError(
            f"heads must be a multiple of key_value_heads, got "
            f"heads={config.heads} and "
            f"key_value_heads={config.key_value_heads}"
        )


def _check_mamba2(config: LanguageModelConfig) -> None:
    inner = config.mamba2_expand * config.width
    if inner % config.mamba2_head_dim:
        raise ValueError(
            f"mamba2_expand * width must be a multiple of mamba2_head_dim, got "
            f"{config.mamba2_expand} * {config.width} and "
            f"{config.mamba2_head_dim}"
        )
    heads = inner // config.mamba2_head_dim
    if heads % config.mamba2_groups:
        raise ValueError(
            f"mamba2_groups must divide the number of mamba2 heads, {heads} "
            f"(mamba2_expand * width / mamba2_head_dim), got "
            f"{config.mamba2_groups}"
        )
