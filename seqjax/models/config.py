"""What a language model is made of, as plain values.

The dataclass is not frozen, so that command-line overrides can write into it;
call `validate` once they have.  A field that holds a mixer's options is also
that mixer's name in the pattern (see `seqjax.layers.mixer`).
"""

import dataclasses
import math
import typing
from typing import Any, Literal

import jax

from seqjax import layers
from seqjax.layers import fields
from seqjax.layers import mixer

DTYPES = ("float32", "bfloat16", "float64")
NORM_PLACES = ("before", "after", "stream")


def _options(kind: type) -> Any:
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(unsafe_hash=True)
class LanguageModelConfig:
    """Sizes and choices of a `LanguageModel`.

    Attributes:
      vocab_size: number of token ids.
      width: of the residual stream.
      pattern: the mixers of one repeat, first layer first.
      repeats: how often the pattern comes; depth is repeats * len(pattern).
      heads: of every mixer whose options name no other number.
      head_dim: width of a head, likewise; None means width / heads.
      mlp_width: hidden width of SwiGLU; None means 8/3 width, rounded up to a
        multiple of 64.
      tie_embeddings: whether the output projection is the embedding.
      remat: recompute each block in the backward pass.
      dtype: of the computation; parameters, gates, norm statistics, states
        and logits stay float32.  "float64" (a check, needs jax_enable_x64)
        widens all but the parameters.
      norm_eps: added to the mean square in every norm.
      learned_initial_state: whether the states of the recurrent mixers start
        from parameters (`seqjax.layers.InitialState`) and not from zero.
      norm: of the residual stream: "rms", "zero_centred_rms", whose parameters
        are the scales - 1, or "layer" for layer norms with bias.
      norm_places: where the norms of a layer stand, for each layer of one
        repeat or for all: "before" the mixer and the MLP; "after" them, on what
        is added to the stream; or in the "stream", x = norm(x) before each.
      stream_scale: factor on the stream wherever a layer adds to it.
      branch_scale: factor on what a layer adds.
      embedding_scale: factor on the embedding.
      logit_scale: factor on the logits.
      logit_cap: bound of the logits, cap tanh(logits / cap); None for none.
      embedding_norm: whether the embedding is normalised before the layers.
      mlps: the channel mixers of one repeat, or one name for all of them;
        "none" for a layer without.
      shared_blocks: for each layer of one repeat, or for all, the index of the
        shared block (`seqjax.layers.shared_block`) whose output is added to
        what the mixer reads; None for a layer without.  The blocks are the
        same in every repeat.
      shared_block: options of these blocks.

    The other fields are the options of each mixer and channel mixer; those
    outside the pattern and `mlps` do not matter.
    """

    vocab_size: int = 256
    width: int = 256
    pattern: tuple[str, ...] = ("simple_gla",) * 3 + ("attention",)
    repeats: int = 1
    heads: int = 4
    head_dim: int | None = None
    mlp_width: int | None = None
    tie_embeddings: bool = True
    remat: bool = False
    dtype: str = "float32"
    norm_eps: float = 1e-5
    learned_initial_state: bool = False
    norm: Literal["rms", "zero_centred_rms", "layer"] = "rms"
    norm_places: tuple[str, ...] = ("before",)
    stream_scale: float = 1.0
    branch_scale: float = 1.0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    embedding_norm: bool = False
    mlps: tuple[str, ...] = ("swiglu",)
    shared_blocks: tuple[int | None, ...] = (None,)
    shared_block: layers.SharedBlockOptions = _options(
        layers.SharedBlockOptions
    )
    swiglu: layers.SwiGLUOptions = _options(layers.SwiGLUOptions)
    rwkv_channels: layers.RWKVChannelsOptions = _options(
        layers.RWKVChannelsOptions
    )
    moe: layers.MoEOptions = _options(layers.MoEOptions)
    linear_attention: layers.LinearAttentionOptions = _options(
        layers.LinearAttentionOptions
    )
    based: layers.BasedOptions = _options(layers.BasedOptions)
    retnet: layers.RetNetOptions = _options(layers.RetNetOptions)
    lightning: layers.LightningOptions = _options(layers.LightningOptions)
    simple_gla: layers.SimpleGLAOptions = _options(layers.SimpleGLAOptions)
    gla: layers.GLAOptions = _options(layers.GLAOptions)
    hgrn: layers.HGRNOptions = _options(layers.HGRNOptions)
    hgrn2: layers.HGRN2Options = _options(layers.HGRN2Options)
    lightnet: layers.LightNetOptions = _options(layers.LightNetOptions)
    gsa: layers.GSAOptions = _options(layers.GSAOptions)
    gated_convolution: layers.GatedConvolutionOptions = _options(
        layers.GatedConvolutionOptions
    )
    mamba: layers.MambaOptions = _options(layers.MambaOptions)
    mamba2: layers.Mamba2Options = _options(layers.Mamba2Options)
    mamba2_attention: layers.Mamba2AttentionOptions = _options(
        layers.Mamba2AttentionOptions
    )
    rglru: layers.RGLRUOptions = _options(layers.RGLRUOptions)
    s5: layers.S5Options = _options(layers.S5Options)
    rwkv4: layers.RWKV4Options = _options(layers.RWKV4Options)
    rwkv6: layers.RWKV6Options = _options(layers.RWKV6Options)
    rwkv7: layers.RWKV7Options = _options(layers.RWKV7Options)
    delta_net: layers.DeltaNetOptions = _options(layers.DeltaNetOptions)
    gated_delta_net: layers.GatedDeltaNetOptions = _options(
        layers.GatedDeltaNetOptions
    )
    gated_delta_product: layers.GatedDeltaProductOptions = _options(
        layers.GatedDeltaProductOptions
    )
    kda: layers.KDAOptions = _options(layers.KDAOptions)
    comba: layers.CombaOptions = _options(layers.CombaOptions)
    mlstm: layers.MLSTMOptions = _options(layers.MLSTMOptions)
    attention: layers.AttentionOptions = _options(layers.AttentionOptions)
    latent_attention: layers.LatentAttentionOptions = _options(
        layers.LatentAttentionOptions
    )

    @property
    def depth(self) -> int:
        """Number of layers, each a mixer and an MLP."""
        return self.repeats * len(self.pattern)

    @property
    def resolved_mlp_width(self) -> int:
        """`mlp_width`, or its default where it is None."""
        if self.mlp_width is not None:
            return self.mlp_width
        return -(-8 * self.width // (3 * 64)) * 64

    @property
    def residual_scale(self) -> float:
        """Factor on what each layer first adds to the residual stream.

        There are two additions a layer, so that their sum starts at unit size
        whatever the depth (as GPT-2 and Mamba).
        """
        return 1 / math.sqrt(2 * self.depth)

    @classmethod
    def pattern_names(cls) -> tuple[str, ...]:
        """Names that a pattern accepts: the fields that hold options."""
        return cls._fields_of(mixer.Options)

    @classmethod
    def mlp_names(cls) -> tuple[str, ...]:
        """Names that `mlps` accepts."""
        return ("none", *cls._fields_of(layers.ChannelOptions))

    @classmethod
    def _fields_of(cls, kind: type) -> tuple[str, ...]:
        hints = typing.get_type_hints(cls)
        return tuple(
            name
            for name in (field.name for field in dataclasses.fields(cls))
            if isinstance(hints[name], type) and issubclass(hints[name], kind)
        )

    def mlp(self, place: int) -> str:
        """Name of the channel mixer at a place of the pattern."""
        return self.mlps[place if len(self.mlps) > 1 else 0]

    def norm_place(self, place: int) -> str:
        """Where the norms stand in the layer at a place of the pattern."""
        return self.norm_places[place if len(self.norm_places) > 1 else 0]

    def shared(self, place: int) -> int | None:
        """Index of the shared block at a place of the pattern, or None."""
        return self.shared_blocks[place if len(self.shared_blocks) > 1 else 0]

    def shared_uses(self) -> dict[int, int]:
        """In how many layers each of the shared blocks stands."""
        found = [self.shared(place) for place in range(len(self.pattern))]
        named = sorted({index for index in found if index is not None})
        return {index: self.repeats * found.count(index) for index in named}

    def count(self, name: str) -> int:
        """In how many layers a name of the pattern, or a shared block, is."""
        if name == "shared_block":
            return sum(self.shared_uses().values())
        return self.repeats * self.pattern.count(name)

    def options(self, name: str) -> mixer.Options:
        """The options of a name of the pattern."""
        if name not in self.pattern_names():
            names = self.pattern_names()
            raise ValueError(
                f"pattern names {name!r}; accepted are {names}, the nearest "
                f"is {fields.closest(name, names)!r}"
            )
        return getattr(self, name)

    def host(self, name: str) -> mixer.Host:
        """What the layers of that name are told of this model."""
        return mixer.Host(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            head_dim=self.head_dim,
            eps=self.norm_eps,
            dtype=jax.numpy.dtype(self.dtype),
            residual_scale=self.residual_scale,
            layers_of_kind=self.count(name),
        )

    def validate(self, prefix: str = "") -> None:
        """Raises ValueError naming the field, its value and what is accepted.

        Touches no device.

        Args:
          prefix: what stands before the field names, such as "model.".
        """
        fields.check(self, prefix)
        if not isinstance(self.pattern, tuple) or not self.pattern:
            raise ValueError(
                f"{prefix}pattern must be a tuple of at least one of "
                f"{self.pattern_names()}, got {self.pattern!r}"
            )
        kinds = {name: self.options(name) for name in self.pattern}
        fields.check_choice(f"{prefix}dtype", self.dtype, DTYPES)
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                f'{prefix}dtype="float64" needs jax_enable_x64; turn it on '
                '(JAX_ENABLE_X64=1) or use "float32" or "bfloat16"'
            )
        for name, options in kinds.items():
            options.check(self.host(name), f"{prefix}{name}.")
        self._check_places(prefix, "norm_places", NORM_PLACES)
        self._check_places(prefix, "mlps", self.mlp_names())
        for name in sorted(set(self.mlps) - {"none"}):
            host = self.host(self.pattern[0])
            getattr(self, name).check(host, f"{prefix}{name}.")
        self._check_shared(prefix)

    def check_sharded(
        self, length: int, devices: int, prefix: str = ""
    ) -> None:
        """Raises ValueError unless a mesh axis can shard T.

        Args:
          length: T, of the whole sequence.
          devices: P, of the axis.
          prefix: as in `validate`.
        """
        if devices == 1:
            return
        if length % devices:
            down, up = length // devices * devices, -(-length // devices)
            near = [n for n in (down, up * devices) if n]
            raise ValueError(
                f"data.sequence_length = {length} is not divisible by "
                f"mesh.seq = {devices}; set data.sequence_length to "
                f"{' or '.join(map(str, near))}, or another mesh.seq"
            )
        for name in dict.fromkeys(self.pattern):
            self.options(name).check_sharded(
                self.host(name), f"{prefix}{name}.", length, devices
            )
        if self.shared_uses():
            host = self.host(self.pattern[0])
            self.shared_block.check_sharded(
                host, f"{prefix}shared_block.", length, devices
            )

    def _check_shared(self, prefix: str) -> None:
        """Requires shared blocks 0, 1, ... where they can stand."""
        value, size = self.shared_blocks, len(self.pattern)
        if (
            not isinstance(value, tuple)
            or len(value) not in (1, size)
            or {*map(type, value)} - {int, type(None)}
        ):
            raise ValueError(
                f"{prefix}shared_blocks must be a tuple of one or {size} (as "
                f"the pattern) of None and indices from 0, got {value!r}"
            )
        uses = self.shared_uses()
        if list(uses) != list(range(len(uses))):
            raise ValueError(
                f"{prefix}shared_blocks must name all blocks from 0 to the "
                f"last one, got {value!r}"
            )
        for place in range(size):
            where = self.norm_place(place)
            if self.shared(place) is not None and where == "stream":
                raise ValueError(
                    f"{prefix}shared_blocks must be None in a layer whose "
                    f"{prefix}norm_places is 'stream', got "
                    f"{self.shared(place)} at {place}; take 'before' or 'after'"
                )
        if uses:
            host = self.host(self.pattern[0])
            self.shared_block.check(host, f"{prefix}shared_block.")

    def _check_places(
        self, prefix: str, name: str, accepted: tuple[str, ...]
    ) -> None:
        """Requires one of a few names for each place, or for all."""
        value = getattr(self, name)
        if (
            not isinstance(value, tuple)
            or len(value) not in (1, len(self.pattern))
            or not set(value) <= set(accepted)
        ):
            raise ValueError(
                f"{prefix}{name} must be a tuple of one or {len(self.pattern)} "
                f"(as the pattern) of {accepted}, got {value!r}"
            )
