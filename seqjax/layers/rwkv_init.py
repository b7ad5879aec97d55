"""Initial values of RWKV: curves over the channels that change with depth.

With u the place of a channel from 0 to 1, s = l / (L - 1) the place of the
layer and z = 1 - l / L: lower layers look at the token before, upper ones at
the token itself, and decays range from a few tokens to all of them.  From the
RWKV-5/6 paper (arXiv 2404.05892) and the author's training code for RWKV-6 and
RWKV-7.  The index of the layer may be traced, where layers are scanned.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

Initializer = nn.initializers.Initializer


class Depth(NamedTuple):
    """Place of a layer in its model: index l of `layers` L."""

    layer: jax.Array | int
    layers: int

    @property
    def rising(self) -> jax.Array:
        """s: 0 in the first layer, 1 in the last."""
        return jnp.asarray(self.layer) / max(self.layers - 1, 1)

    @property
    def falling(self) -> jax.Array:
        """z: 1 in the first layer, 1 / L in the last."""
        return 1 - jnp.asarray(self.layer) / self.layers


def mixture(
    exponent: jax.Array | float, offset: jax.Array | float = 0.0
) -> Initializer:
    """1 - (u^exponent + offset), u = channel / D."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        del key
        place = jnp.arange(shape[-1], dtype=dtype) / shape[-1]
        return (1 - (place**exponent + offset)).astype(dtype)

    return init


def rwkv4_mixtures(depth: Depth) -> dict[str, Initializer]:
    """Of the token shift of RWKV-4, by projection: shares of the token.

    They are u^z (+ 0.3 s for the value), where those of the later models are
    shares of the token before.
    """

    def share(exponent: jax.Array, offset: jax.Array | float) -> Initializer:
        before = mixture(exponent, offset)
        return lambda *args: 1 - before(*args)

    return {
        "key": share(depth.falling, 0.0),
        "value": share(depth.falling, 0.3 * depth.rising),
        "receptance": share(0.5 * depth.falling, 0.0),
    }


def rwkv4_decay(depth: Depth) -> Initializer:
    """w = -5 + 8 u^(0.7 + 1.3 s), over all channels."""
    return _over_channels(lambda u: -5 + 8 * u ** (0.7 + 1.3 * depth.rising))


def rwkv4_bonus() -> Initializer:
    """u = log 0.3 and a ripple of 0.5 with period 3."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        del key
        ripple = 0.5 * ((jnp.arange(shape[-1]) + 1) % 3 - 1)
        return (jnp.log(0.3) + ripple).astype(dtype)

    return init


def rwkv6_mixtures(depth: Depth) -> dict[str, Initializer]:
    """Of the token shift of RWKV-6, by stream; "x" is the mixture's own."""
    falling = depth.falling
    same = mixture(falling)
    return {
        "x": same,
        "w": same,
        "k": same,
        "v": mixture(falling, 0.3 * depth.rising),
        "r": mixture(0.5 * falling),
        "g": mixture(0.5 * falling),
    }


def rwkv7_mixtures(depth: Depth) -> dict[str, Initializer]:
    """Of the token shift of RWKV-7, by stream."""
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    return {
        name: mixture(power * depth.falling) for name, power in powers.items()
    }


def rwkv6_decay(depth: Depth) -> Initializer:
    """w_0 = -6 + 5 u^(0.7 + 1.3 s), over all heads' channels."""
    return _over_channels(lambda u: -6 + 5 * u ** (0.7 + 1.3 * depth.rising))


def rwkv7_decay(depth: Depth, head_dim: int) -> Initializer:
    """w_0 = -5.5 + 6 u^(1 + s^0.3), and a zigzag of 2.5 inside each head."""

    def curve(u: jax.Array) -> jax.Array:
        return -5.5 + 6 * u ** (1 + depth.rising**0.3)

    return _over_channels(curve, 2.5, head_dim)


def rwkv7_rate(head_dim: int) -> Initializer:
    """a_0 = -0.19 + 0.4 (u - 1/2), and a zigzag of 0.3 inside each head."""
    return _over_channels(lambda u: -0.19 + 0.4 * (u - 0.5), 0.3, head_dim)


def line(middle: float, slope: float) -> Initializer:
    """middle + slope (u - 1/2), over all channels."""
    return _over_channels(lambda u: middle + slope * (u - 0.5))


def bonus(depth: Depth) -> Initializer:
    """u = s (1 - channel) and a ripple of 0.1 with period 3."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        del key
        place = _places(shape, dtype)
        channel = jnp.arange(place.size, dtype=jnp.int32).reshape(shape)
        ripple = 0.1 * ((channel + 1) % 3 - 1)
        return (depth.rising * (1 - place) + ripple).astype(dtype)

    return init


def _places(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    size = 1
    for length in shape:
        size *= length
    return jnp.linspace(0, 1, size, dtype=dtype).reshape(shape)


def _over_channels(
    curve: Callable[[jax.Array], jax.Array],
    zigzag: float = 0.0,
    head_dim: int = 1,
) -> Initializer:
    """curve(u), and inside a head zigzag * p |p| with p from -1 to 1."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype):
        del key
        places = _places(shape, dtype)
        inside = jnp.linspace(-1, 1, head_dim, dtype=dtype)
        inside = jnp.tile(inside, places.size // head_dim).reshape(shape)
        ripple = zigzag * inside * jnp.abs(inside)
        return (curve(places) + ripple).astype(dtype)

    return init
