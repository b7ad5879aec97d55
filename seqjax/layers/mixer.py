"""What all mixers share, and how a model's config speaks to them.

A mixer is a Flax module whose fields are sizes in numbers.  It is called as

    y, state = layer(x, state=None, segment_ids=None, ...)

and makes its first state with `layer.init_state(batch, capacity)`.  Beside the
module its file has options: a small dataclass of what a model's config says of
that mixer (expansion ratios, gates, biases), with the published values as
defaults, and `options.build(host)`, which makes the module for a model.

A model's config has one field of options for each mixer, and the name of the
field is the name in the pattern: `config.gla.key_expand` belongs to the layers
that the pattern calls "gla" (`--config.model.gla.key_expand=1.0`).  A mixer of
one's own needs no registry: a subclass of the config with one more field.

    class Config(models.LanguageModelConfig):
        mine: MyOptions = dataclasses.field(default_factory=MyOptions)

Where its layer hands `axis_name` and `exchange` on to its operators, its
options say so (`shards_time = True`), and runs may shard time.

Beside the state and the ids, a layer may need what only its model knows: the
positions of the tokens, its place in the depth, rows of a table for all
layers.  `options.needs` names those arguments of the call, and `options.tables`
gives tables of constants.

First states: `seqjax.layers.InitialState` learns them, for any mixer.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import fields


class Mixer(nn.Module, kw_only=True):
    """Base of the mixer layers.

    Attributes:
      eps: of the norms.
      dtype: of the computation; parameters, gates and states are float32.
      residual_scale: factor on the initial output projection.
      axis_name: mesh axis that shards T, inside `jax.shard_map`.
      exchange: how the operator exchanges states along it, None for its
        default.
    """

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0
    axis_name: str | None = None
    exchange: str | None = None

    @nn.nowrap
    def init_state(self, batch: int, capacity: int) -> Any:
        """The state before any token."""
        raise NotImplementedError(f"{type(self).__name__} has no init_state")


class Host(NamedTuple):
    """The model that a layer is made for.

    Attributes:
      width: D, of the residual stream.
      depth: L, number of layers.
      heads: number of heads where the options name none.
      head_dim: width of a head where the options name none; None for
        width / heads.
      eps: of the norms.
      dtype: of the computation.
      residual_scale: factor on the initial output projection.
      layers_of_kind: how many of the layers are of this mixer.
      axis_name: mesh axis that shards T.
      exchange: along it, of recurrent mixers; None for the default.
      attention_exchange: along it, of softmax attention; likewise.
    """

    width: int
    depth: int
    heads: int
    head_dim: int | None = None
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.dtype("float32")
    residual_scale: float = 1.0
    layers_of_kind: int = 1
    axis_name: str | None = None
    exchange: str | None = None
    attention_exchange: str | None = None


@dataclasses.dataclass(unsafe_hash=True)
class Options:
    """What a config says of one mixer; the base of the options of each.

    Not frozen, so that command-line overrides can write into it.

    Attributes:
      eps: of the norms of the mixer; None is the model's.
    """

    # FLOPs a token for each number of the state: decay 1, write 2, read 2.
    flops_per_state: ClassVar[float] = 5.0
    # Whether the layer hands `axis_name` on; one that does not would treat
    # every shard of a sequence as a sequence.
    shards_time: ClassVar[bool] = False

    eps: float | None = None

    def common(self, host: Host) -> dict[str, Any]:
        """The fields of every `Mixer`."""
        return {
            "eps": self.eps or host.eps,
            "dtype": host.dtype,
            "residual_scale": host.residual_scale,
            "axis_name": host.axis_name,
            "exchange": host.exchange,
        }

    @property
    def needs(self) -> tuple[str, ...]:
        """Arguments of the layer's call that its model must give.

        Any of "positions", "layer" (its index, int32 []), "ordinal" (its index
        among the layers of its kind), "first_value", "lower_bound", and the
        names in `tables`.
        """
        return ()

    def check(self, host: Host, path: str) -> None:
        """Raises ValueError naming the field by its path, such as "gla."."""
        del host
        fields.check(self, path)

    def check_sharded(
        self, host: Host, path: str, length: int, devices: int
    ) -> None:
        """Raises ValueError unless T can be sharded over so many devices.

        Args:
          host: the model.
          path: of the options, such as "gla.".
          length: T, of the whole sequence; divisible by `devices`.
          devices: P, at least 2.
        """
        name = path.rstrip(".")
        if not self.shards_time:
            raise ValueError(
                f"mesh.seq = {devices} shards time, but {name} has no "
                f"sequence-parallel form ({type(self).__name__}.shards_time "
                f"is not set); set mesh.seq to 1, or take another mixer"
            )
        state = jax.eval_shape(
            lambda: self.build(host, parent=None).init_state(1, 1)
        )
        past = [getattr(state, n) for n in PAST_INPUTS if n in state._fields]
        seen = max((leaf.shape[1] for leaf in jax.tree.leaves(past)), default=0)
        if length // devices < seen:
            most = max(
                few
                for few in range(1, devices)
                if few == 1 or not length % few and length // few >= seen
            )
            raise ValueError(
                f"mesh.seq = {devices} leaves {length // devices} of "
                f"{length} tokens to each device, but {name} looks {seen} "
                f"tokens back at the device before; lower mesh.seq to {most}, "
                f"or raise data.sequence_length to at least "
                f"{seen * devices}"
            )

    def build(self, host: Host, **module: Any) -> Mixer:
        """The layer; `module` is `name` or `parent`, as Flax takes them."""
        raise NotImplementedError(f"{type(self).__name__} has no build")

    def tables(self, host: Host) -> dict[str, jax.Array]:
        """Constants for all layers of the model, [L, ...] each, by argument."""
        del host
        return {}

    def leaves(self, host: Host) -> dict[str, int]:
        """What a layer leaves for later ones, [B, T, size] each: the sizes.

        The call of such a layer returns a third value, a dict of them.
        """
        del host
        return {}

    def lower_bound(self, host: Host) -> int | None:
        """Channels of the learned lower bounds of its gates, if it has them.

        The model then owns a table [L, channels] and gives each layer its row
        (`seqjax.layers.gates.lower_bounds`) as the argument "lower_bound".
        """
        del host
        return None

    def bounded(self, state: Any) -> Any:
        """The part of a layer's state that bounds how many tokens it takes.

        That is the `AttentionState` of softmax attention without a window.
        """
        del state
        return None

    def flops(self, host: Host, length: int) -> float:
        """Forward FLOPs a token beside the projections; `length` is T."""
        del length
        state = jax.eval_shape(
            lambda: self.build(host, parent=None).init_state(1, 1)
        )
        numbers = sum(math.prod(leaf.shape) for leaf in memory_of(state))
        return self.flops_per_state * numbers


@dataclasses.dataclass(unsafe_hash=True)
class HeadOptions(Options):
    """Options of a mixer with heads; None is the model's own number.

    Attributes:
      heads: H.
      head_dim: width of a head, before any expansion.
    """

    heads: int | None = None
    head_dim: int | None = None

    def sizes(self, host: Host) -> tuple[int, int]:
        """Number of heads and width of a head."""
        heads = self.heads or host.heads
        return heads, self.head_dim or host.head_dim or host.width // heads

    def check(self, host: Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        heads = self.heads or host.heads
        named = self.head_dim or host.head_dim
        if not named and host.width % heads:
            raise ValueError(
                f"width must be a multiple of heads, got width={host.width} "
                f"and heads={heads}; change one of them or set "
                f"{path}head_dim"
            )


@dataclasses.dataclass(unsafe_hash=True)
class ExpandedOptions(HeadOptions):
    """Options of a mixer whose keys and values have widths of their own.

    Attributes:
      key_expand: key width of a head over `head_dim`.
      value_expand: value width of a head over `head_dim`.
    """

    key_expand: float = 1.0
    value_expand: float = 1.0

    def expanded_sizes(
        self, host: Host, path: str = ""
    ) -> tuple[int, int, int]:
        """Number of heads, their key width and their value width."""
        heads, head_dim = self.sizes(host)
        return (
            heads,
            expanded(f"{path}key_expand", self.key_expand, head_dim),
            expanded(f"{path}value_expand", self.value_expand, head_dim),
        )

    def check(self, host: Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        super().check(host, path)
        self.expanded_sizes(host, path)


def expanded(path: str, factor: float, size: int) -> int:
    """factor * size, which must be whole and at least 1.

    Args:
      path: of the factor, for the message.
      factor: such as 0.5.
      size: what it multiplies.

    Raises:
      ValueError: it is not.
    """
    wide = round(factor * size)
    if wide < 1 or abs(wide - factor * size) > 1e-6 * size:
        raise ValueError(
            f"{path} times {size} must be a whole number of at least 1, got "
            f"{path}={factor}"
        )
    return wide


def require_even(path: str, size: int, why: str) -> None:
    """Requires an even size; `path` is the field to change."""
    if size % 2:
        raise ValueError(
            f"{why} need an even head_dim, got {size}; set {path} to an even "
            "number"
        )


# Fields of a state that hold inputs of the tokens last seen.
PAST_INPUTS = ("conv", "shift")


def memory_of(state: Any) -> list[Any]:
    """Leaves of a layer's state without the windows over past inputs."""
    return jax.tree.leaves(
        state._replace(
            **{name: None for name in PAST_INPUTS if name in state._fields}
        )
    )
