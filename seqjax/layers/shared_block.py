"""A transformer block whose weights several layers share (Zamba, 2405.16712).

    u = rms([x; e])                        e: the embedding of the token
    y = W_l mlp(rms(attention(u)))

Attention, MLP and norms are one set of weights that a model holds once and
reads at several depths.  W_l [D, D] is the layer's own; so are the low-rank
terms that Zamba2 (2411.15242) adds to the maps into the MLP, and to queries,
keys and values.  Nothing is added back inside, and y goes to what the layer's
mixer reads, not to the residual stream.  A head is 2D / H wide and its scores
are scaled by (K/2)^-0.5.  Every layer has keys and values of its own: state and
cost are those of attention, the weights those of one block.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import attention as attention_lib
from seqjax.layers import channels
from seqjax.layers import fields
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms


class SharedBlock(nn.Module):
    """One layer's use of a shared block, with that layer's own parameters.

    Attributes:
      features: D.
      attention: from 2D channels to D, without a parent.
      mlp: from D to D, likewise.
      adapter_rank: of the layer's own terms on the maps into the MLP; None for
        none.
      attention_adapters: whether queries, keys and values have some too.
      eps: of the norms.
      dtype: of the computation; parameters are float32.
      residual_scale: factor on the initial W_l.
    """

    features: int
    attention: attention_lib.Attention
    mlp: channels.SwiGLUChannels
    adapter_rank: int | None = None
    attention_adapters: bool = False
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0

    @property
    def needs_positions(self) -> bool:
        """Whether the call must be given positions."""
        return self.attention.rotary_base is not None

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> ops.AttentionState:
        """An empty cache for `capacity` tokens."""
        return self.attention.init_state(batch, capacity)

    @nn.nowrap
    def init_weights(self, key: jax.Array) -> dict[str, Any]:
        """The first value of what layers share: a tree of parameters."""
        width, parts = self.features, self._parts()
        return {
            name: parts[name].init(own, jnp.zeros((1, 1, size), self.dtype))[
                "params"
            ]
            for (name, size), own in zip(
                (
                    ("attention_norm", 2 * width),
                    ("attention", 2 * width),
                    ("mlp_norm", width),
                    ("mlp", width),
                ),
                jax.random.split(key, 4),
                strict=True,
            )
        }

    @nn.nowrap
    def _parts(self) -> dict[str, nn.Module]:
        """The modules whose parameters are shared."""
        return {
            "attention_norm": norms.RMSNorm(self.eps, parent=None),
            "attention": self.attention.clone(parent=None),
            "mlp_norm": norms.RMSNorm(self.eps, parent=None),
            "mlp": self.mlp.clone(parent=None),
        }

    @nn.compact
    def __call__(
        self,
        weights: dict[str, Any],
        x: jax.Array,
        embedding: jax.Array,
        state: ops.AttentionState | None = None,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, ops.AttentionState | None]:
        """What the block adds to the input of a mixer.

        Args:
          weights: what layers share, a tree as `init_weights` makes it.
          x: [B, T, D], the residual stream.
          embedding: [B, T, D], the stream before the first layer.
          state: what an earlier call returned, or None.
          segment_ids: int32 [B, T] or None; -1 is padding.
          positions: int32 [B, T], as attention takes them.

        Returns:
          y [B, T, D] in `dtype`, and the state with these tokens added.
        """
        parts = self._parts()

        def call(name: str, *args: Any) -> Any:
            return parts[name].apply({"params": weights[name]}, *args)

        u = call("attention_norm", jnp.concatenate([x, embedding], axis=-1))
        added = self._added_to_heads(u) if self.attention_adapters else None
        y, state = call("attention", u, state, segment_ids, positions, added)
        y = call("mlp_norm", y)
        y, _ = call("mlp", y, None, None, self._added_to_mlp(y))
        lecun = nn.initializers.lecun_normal()
        y = nn.Dense(
            self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializers.scaled(lecun, self.residual_scale),
            name="out",
        )(y)
        return y, state

    def _adapter(self, x: jax.Array, width: int, name: str) -> jax.Array:
        """A low-rank term, at first 0: then all layers start alike."""
        first, last = nn.initializers.lecun_normal(), nn.initializers.zeros
        for size, init, own in (
            (self.adapter_rank or 0, first, f"{name}_adapter_in"),
            (width, last, f"{name}_adapter"),
        ):
            x = nn.Dense(
                size,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init,
                name=own,
            )(x)
        return x

    def _added_to_heads(self, u: jax.Array) -> tuple[jax.Array, ...]:
        heads, size = self.attention.heads, self.attention.head_dim
        shared = self.attention.key_value_heads or heads
        return tuple(
            self._adapter(u, count * size, name).reshape(
                *u.shape[:2], count, size
            )
            for name, count in (
                ("query", heads),
                ("key", shared),
                ("value", shared),
            )
        )

    def _added_to_mlp(self, y: jax.Array) -> tuple[jax.Array, ...] | None:
        if self.adapter_rank is None:
            return None
        maps = 2 if self.mlp.gated else 1
        terms = self._adapter(y, maps * self.mlp.width, "mlp")
        return tuple(jnp.split(terms, maps, axis=-1))


def _default_mlp() -> channels.SwiGLUOptions:
    return channels.SwiGLUOptions(activation="gelu")


@dataclasses.dataclass(unsafe_hash=True)
class SharedBlockOptions:
    """The shared blocks of a model's config.

    Attributes:
      attention: of the block; where `heads` and `head_dim` are open, the heads
        of the model, 2D / H wide, and `scale` None is (K/2)^-0.5.
      mlp: of the block; its `width` None is the model's `mlp_width`.
      adapter_rank: of each layer's own terms on the maps into the MLP; None
        for none.
      attention_adapters: whether queries, keys and values have some too.
    """

    attention: attention_lib.AttentionOptions = dataclasses.field(
        default_factory=attention_lib.AttentionOptions
    )
    mlp: channels.SwiGLUOptions = dataclasses.field(
        default_factory=_default_mlp
    )
    adapter_rank: int | None = None
    attention_adapters: bool = False

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        fields.check(self, path)
        self.attention.check(_doubled(host), f"{path}attention.")
        self.mlp.check(host, f"{path}mlp.")
        if self.attention_adapters and self.adapter_rank is None:
            raise ValueError(
                f"{path}attention_adapters needs a rank; set "
                f"{path}adapter_rank, or attention_adapters to False"
            )

    def check_sharded(
        self, host: mixer.Host, path: str, length: int, devices: int
    ) -> None:
        """Raises ValueError unless T can be sharded over so many devices."""
        self.attention.check_sharded(
            _doubled(host), f"{path}attention.", length, devices
        )

    def build(
        self, host: mixer.Host, mlp_width: int, **module: Any
    ) -> SharedBlock:
        """The layer; `module` is `name` or `parent`, as Flax takes them."""
        attention = self.attention.build(_doubled(host), parent=None)
        return SharedBlock(
            host.width,
            attention.clone(
                features=host.width,
                scale=self.attention.scale or (attention.head_dim / 2) ** -0.5,
            ),
            self.mlp.build(host, mlp_width, parent=None),
            self.adapter_rank,
            self.attention_adapters,
            self.attention.eps or host.eps,
            host.dtype,
            host.residual_scale,
            **module,
        )

    def bounded(self, state: Any) -> Any:
        """The part of a state that bounds how many tokens it takes."""
        return self.attention.bounded(state)

    def flops(self, host: mixer.Host, length: int) -> float:
        """Forward FLOPs a token beside the projections; `length` is T."""
        return self.attention.flops(_doubled(host), length)


def _doubled(host: mixer.Host) -> mixer.Host:
    return host._replace(width=2 * host.width)
