"""How a token is drawn from logits: greedy, temperature, top-k, top-p.

Temperature first, then the k likeliest tokens, then the smallest set of
likeliest tokens with probability p among them (nucleus, arXiv 1904.09751).
Equal logits are ranked by token id.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from seqjax.generation import _arguments


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A way to draw tokens; hashable, a static argument of jitted functions.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among that many likeliest tokens; None for all.
      top_p: draw among the likeliest tokens whose sum of probabilities first
        reaches top_p; None for all.

    Raises:
      ValueError: a value out of range, or top_k or top_p at temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _arguments.check_number(
            "temperature",
            self.temperature,
            "a finite number of at least 0",
            low=0,
            high=math.inf,
        )
        _arguments.check_whole("top_k", self.top_k, optional=True)
        if self.top_p is not None:
            _arguments.check_number(
                "top_p",
                self.top_p,
                "a number above 0 and at most 1, or None",
                low=math.ulp(0.0),
                high=1,
            )
        if self.greedy and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"top_k and top_p must be None at temperature 0, which takes "
                f"the likeliest token, got top_k={self.top_k} and "
                f"top_p={self.top_p}; set a temperature above 0"
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def mask(self, logits: jax.Array) -> jax.Array:
        """Logits over temperature, -inf where a token cannot be drawn.

        The largest of a row becomes 0, so that no temperature overflows.

        Args:
          logits: float [B, vocab].

        Returns:
          float32 [B, vocab].

        Raises:
          ValueError: the sampler is greedy.
        """
        if self.greedy:
            raise ValueError("temperature must be above 0 to draw, got 0")
        logits = logits.astype(jnp.float32)
        logits -= jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(logits == 0, 0.0, logits / self.temperature)
        top_p = None if self.top_p == 1 else self.top_p
        if self.top_k is None and top_p is None:
            return logits
        order = jnp.argsort(-logits, axis=-1, stable=True)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        if self.top_k is not None:
            rank = jnp.arange(logits.shape[-1])[None]
            ranked = jnp.where(rank < self.top_k, ranked, -jnp.inf)
        if top_p is not None:
            likely = jax.nn.softmax(ranked, axis=-1)
            before = jnp.cumsum(likely, axis=-1) - likely
            # The likeliest token always stays: nothing is before it.
            ranked = jnp.where(before < top_p, ranked, -jnp.inf)
        rank_of = jnp.argsort(order, axis=-1)
        return jnp.take_along_axis(ranked, rank_of, axis=-1)

    def __call__(
        self, logits: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Draws a token for each row.

        Args:
          logits: float [B, vocab].
          keys: one random key a row; None where the sampler is greedy.

        Returns:
          int32 [B].
        """
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if keys is None:
            raise ValueError(
                f"keys must be one random key a row at temperature "
                f"{self.temperature}, got None"
            )
        draw = jax.vmap(jax.random.categorical)
        return draw(keys, self.mask(logits)).astype(jnp.int32)


def row_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """fold_in(fold_in(key, row), position) for each row.

    So a draw depends on neither the number of rows nor how many tokens are
    made in a call.

    Args:
      key: one random key.
      positions: int32 [B], index of the token to draw in its document.
    """
    rows = jnp.arange(positions.shape[0], dtype=jnp.int32)
    return jax.vmap(
        lambda row, position: jax.random.fold_in(
            jax.random.fold_in(key, row), position
        )
    )(rows, positions)
