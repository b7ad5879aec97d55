"""A learned first state for any mixer (state tuning).

    S_0 = parameters, the same for every row;  y, S_T = layer(x, S_0)

Lina-Speech (arXiv 2410.23320) and RWKV adapt a frozen model by training S_0
alone.  The parameters start at 0, so that a model changes nothing when they are
added to it.  Windows over past inputs (of a convolution, of a token shift) and
caches of keys and values are not learned: they stay empty.

S_0 belongs to the first segment of a row.  Later documents of the row start
from zero, at the hard reset within a call as at the start of a later one.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax import ops
from seqjax.layers import mixer

# A running maximum: the state is relative to it, and -inf means nothing.
_RUNNING_MAX = ("m", "max")


class InitialState(nn.Module):
    """Parameters in the shape of a mixer's state.

    In front of a layer: `state = InitialState()(layer.init_state(B, 1))`.
    """

    @nn.compact
    def __call__(
        self,
        empty: Any,
        state: Any = None,
        fresh: jax.Array | None = None,
    ) -> Any:
        """The state to start or to go on with.

        Args:
          empty: state before any token, leaves [B, ...]; its values do not
            matter where they are learned.
          state: what an earlier call returned, or None at the start.
          fresh: bool [B], rows of `state` that no token has reached yet, which
            start from the parameters; None for none of them.

        Returns:
          A state like `empty`; softmax attention's is `state` untouched.
        """
        start = jax.tree_util.tree_map_with_path(
            self._leaf, empty, is_leaf=_is_cache
        )
        if state is None:
            return start
        if fresh is None:
            return state

        def choose(old: Any, new: Any) -> Any:
            if _is_cache(old):
                return old
            rows = fresh.reshape((-1,) + (1,) * (old.ndim - 1))
            return jnp.where(rows, new, old)

        return jax.tree.map(choose, state, start, is_leaf=_is_cache)

    def _leaf(self, path: tuple[Any, ...], leaf: Any) -> Any:
        if _is_cache(leaf):
            return None
        names = [key.name if hasattr(key, "name") else str(key) for key in path]
        if set(names) & set(mixer.PAST_INPUTS):
            return leaf
        if names[-1] in _RUNNING_MAX:
            return jnp.zeros_like(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        name, shape = "_".join(names), leaf.shape[1:]

        def learned(name: str) -> jax.Array:
            return self.param(name, nn.initializers.zeros, shape, jnp.float32)

        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            value = jax.lax.complex(
                learned(f"{name}_real"), learned(f"{name}_imag")
            )
        else:
            value = learned(name)
        return jnp.broadcast_to(value.astype(leaf.dtype), leaf.shape)


def _is_cache(state: Any) -> bool:
    """Whether it is softmax attention's, which starts empty."""
    return isinstance(state, ops.AttentionState)
