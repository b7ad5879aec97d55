"""A language model from a layer pattern.

    x = x + mixer(rms(x));  x = x + swiglu(rms(x));  logits = rms(x) E^T

The layers of one pattern are written out; its repeats are one `scan` over
stacked parameters, so that tracing and compiling take as long for a hundred
repeats as for one.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from seqjax import layers
from seqjax import ops
from seqjax.layers import norms
from seqjax.layers import slopes as slopes_lib
from seqjax.models import cache as cache_lib
from seqjax.models import config as config_lib
from seqjax.models import mixers
from seqjax.recurrence import segments

ModelCache = cache_lib.ModelCache


class Block(nn.Module):
    """One layer: a mixer and an MLP, each after a norm and added back."""

    config: config_lib.LanguageModelConfig
    kind: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        state: Any,
        log_decay: jax.Array | None,
        segment_ids: jax.Array | None,
        positions: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Maps x [B, T, D] and the layer's state to the next ones."""
        config = self.config
        mixer = mixers.build(config, self.kind, name="mixer")
        normed = layers.RMSNorm(config.norm_eps, name="mixer_norm")(x)
        y, state = mixers.mix(
            mixer, normed, state, segment_ids, positions, log_decay
        )
        x = x + y
        mlp = layers.SwiGLU(
            config.resolved_mlp_width,
            jnp.dtype(config.dtype),
            mixers.residual_scale(config),
            name="mlp",
        )
        return x + mlp(layers.RMSNorm(config.norm_eps, name="mlp_norm")(x)), (
            state
        )


class Repeat(nn.Module):
    """The layers of one repeat of the pattern."""

    config: config_lib.LanguageModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        states: tuple[Any, ...],
        log_decays: tuple[jax.Array | None, ...],
        segment_ids: jax.Array | None,
        positions: jax.Array,
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Maps x [B, T, D] and one state a layer to the next ones."""
        block = Block
        if self.config.remat:
            block = nn.remat(Block, prevent_cse=False)
        following = []
        for i, kind in enumerate(self.config.pattern):
            layer = block(self.config, kind, name=f"layer_{i}")
            x, state = layer(
                x, states[i], log_decays[i], segment_ids, positions
            )
            following.append(state)
        return x, tuple(following)


class LanguageModel(nn.Module):
    """A causal language model over int32 tokens.

    Attributes:
      config: sizes and choices; call `config.validate()` for clear errors.
    """

    config: config_lib.LanguageModelConfig

    @nn.nowrap
    def init_cache(self, batch: int, capacity: int) -> ModelCache:
        """An empty cache.

        Args:
          batch: B, rows.
          capacity: tokens a row may hold in softmax attention layers without
            a window, over all calls; the other layers have a fixed size.

        Returns:
          `ModelCache`.

        Raises:
          ValueError: batch or capacity is less than 1.
        """
        for name, value in (("batch", batch), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        stack = (self.config.repeats,)
        states = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[None], stack + leaf.shape),
            self._empty_states(batch, capacity),
        )
        return ModelCache(
            states,
            jnp.full((batch,), segments.PADDING, jnp.int32),
            jnp.zeros((batch,), jnp.int32),
        )

    def setup(self) -> None:
        """Declares the parameters."""
        config = self.config
        init = nn.initializers.normal(0.02)
        shape = (config.vocab_size, config.width)
        self.embedding = self.param("embedding", init, shape, jnp.float32)
        if not config.tie_embeddings:
            self.unembedding = self.param(
                "unembedding", init, shape, jnp.float32
            )
        self.layers = nn.scan(
            Repeat,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore
            length=config.repeats,
        )(config)
        self.final_norm = layers.RMSNorm(config.norm_eps)

    def __call__(
        self,
        tokens: jax.Array,
        cache: ModelCache | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelCache]:
        """Logits of the token after each token.

        Args:
          tokens: int32 [B, T]; what stands at padding does not matter.
          cache: what an earlier call or `init_cache` returned, or None.
          segment_ids: int32 [B, T], document of each token, non-decreasing,
            -1 padding.  None: one document without padding; with a cache,
            the document that each row is in.

        Returns:
          logits [B, T, vocab] float32, and the cache after these tokens.  A
          token outside the vocabulary gives NaN.

        Raises:
          ValueError: wrong shapes or dtypes, or more tokens than the cache
            has room for.
        """
        x, cache = self._hidden(tokens, cache, segment_ids)
        return self._logits(x), cache

    def last_logits(
        self,
        tokens: jax.Array,
        cache: ModelCache | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelCache]:
        """As `__call__`, but logits [B, vocab] of the last real token only."""
        x, cache = self._hidden(tokens, cache, segment_ids)
        if segment_ids is None:
            last = x[:, -1:]
        else:
            real = segment_ids != segments.PADDING
            index = tokens.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
            last = jnp.take_along_axis(x, index[:, None, None], axis=1)
        return self._logits(last)[:, 0], cache

    def _hidden(
        self,
        tokens: jax.Array,
        cache: ModelCache | None,
        segment_ids: jax.Array | None,
    ) -> tuple[jax.Array, ModelCache]:
        _check_call(tokens, segment_ids, cache, self.capacity(cache))
        self.check_room(cache, segment_ids, tokens.shape)
        entry = cache_lib.enter(cache, segment_ids, tokens.shape)
        states: tuple[Any, ...] = (None,) * len(self.config.pattern)
        if cache is not None:
            states = cache.states
            # Without ids every row goes on with the document it is in.
            if segment_ids is not None:
                states = tuple(
                    cache_lib.empty_rows(state, empty, entry.restart)
                    for state, empty in zip(
                        states, self._empty_states(1, 1), strict=True
                    )
                )
        if segment_ids is not None:
            tokens = jnp.where(segment_ids == segments.PADDING, 0, tokens)
        # Negative indices would count from the end; past it they give NaN.
        tokens = jnp.where(tokens < 0, self.config.vocab_size, tokens)
        x = jnp.take(self.embedding, tokens, axis=0)
        x, states = self.layers(
            x.astype(self.config.dtype),
            states,
            self._log_decays(),
            entry.segment_ids,
            entry.positions,
        )
        return x, ModelCache(states, entry.segment, entry.position)

    def _logits(self, x: jax.Array) -> jax.Array:
        """Logits [B, T, vocab], float32, of x [B, T, D]."""
        table = (
            self.embedding if self.config.tie_embeddings else self.unembedding
        )
        return jnp.einsum(
            "btd,vd->btv",
            self.final_norm(x),
            table.astype(x.dtype),
            preferred_element_type=norms.wide(x.dtype),
        )

    @nn.nowrap
    def _empty_states(self, batch: int, capacity: int) -> tuple[Any, ...]:
        return tuple(
            mixers.build(self.config, kind, parent=None).init_state(
                batch, capacity
            )
            for kind in self.config.pattern
        )

    @nn.nowrap
    def _log_decays(self) -> tuple[jax.Array | None, ...]:
        """Per position of the pattern [repeats, H], where it is lightning."""
        config = self.config
        if "lightning" not in config.pattern:
            return (None,) * len(config.pattern)
        table = slopes_lib.log_decay(config.slopes, config.heads, config.depth)
        table = table.reshape(config.repeats, len(config.pattern), -1)
        return tuple(
            table[:, i] if kind == "lightning" else None
            for i, kind in enumerate(config.pattern)
        )

    @nn.nowrap
    def capacity(self, cache: ModelCache | None) -> int | None:
        """Tokens a row of the cache may hold; None where there is no bound."""
        state = self._bounded(cache)
        return None if state is None else state.k.shape[2]

    @nn.nowrap
    def written(self, cache: ModelCache | None) -> jax.Array | None:
        """Tokens that each row [B] holds; None where there is no bound."""
        state = self._bounded(cache)
        return None if state is None else state.length[0]

    @nn.nowrap
    def check_room(
        self,
        cache: ModelCache | None,
        segment_ids: jax.Array | None,
        shape: tuple[int, ...],
    ) -> None:
        """Refuses tokens past the capacity of softmax attention.

        Counts real tokens, behind those that rows going on with their document
        have written.  Under `jit` these numbers are unknown, and only the
        static check of `__call__` is left.

        Args:
          cache: as in a call.
          segment_ids: as in a call.
          shape: (B, T) of the tokens.

        Raises:
          ValueError: a row would hold more than the cache has room for.
        """
        capacity, written = self.capacity(cache), self.written(cache)
        known = (written, segment_ids, cache and cache.segment)
        if capacity is None or any(isinstance(x, core.Tracer) for x in known):
            return
        used, new = np.asarray(written), np.full(shape[0], shape[1])
        if segment_ids is not None and cache is not None:
            ids = np.asarray(segment_ids)
            real = ids != segments.PADDING
            new = real.sum(axis=1)
            first = ids[np.arange(shape[0]), real.argmax(axis=1)]
            last = np.asarray(cache.segment)
            used = np.where((first == last) | (new == 0), used, 0)
        most = int(np.max(used + new, initial=0))
        if most > capacity:
            row = int(np.argmax(used + new))
            raise ValueError(
                f"tokens: row {row} has {new[row]} more tokens, but the cache"
                f" holds {capacity} and {used[row]} are written; make it with"
                f" model.init_cache(batch, capacity) of at least {most}"
            )

    @nn.nowrap
    def _bounded(self, cache: ModelCache | None) -> ops.AttentionState | None:
        config = self.config
        if cache is None or "attention" not in config.pattern:
            return None
        if config.window is not None:
            return None
        return cache.states[config.pattern.index("attention")]


def _check_call(
    tokens: jax.Array,
    segment_ids: jax.Array | None,
    cache: ModelCache | None,
    capacity: int | None,
) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens must be int32 [B, T], got {tokens.dtype} "
            f"{list(tokens.shape)}"
        )
    if segment_ids is not None and (
        segment_ids.shape != tokens.shape
        or not jnp.issubdtype(segment_ids.dtype, jnp.integer)
    ):
        raise ValueError(
            f"segment_ids must be int32 {list(tokens.shape)} like tokens, got "
            f"{segment_ids.dtype} {list(segment_ids.shape)}"
        )
    if cache is not None and cache.segment.shape != tokens.shape[:1]:
        raise ValueError(
            f"cache must have one row for each of tokens, got "
            f"{cache.segment.shape[0]} rows for {tokens.shape[0]}"
        )
    if capacity is not None and tokens.shape[1] > capacity:
        raise ValueError(
            f"tokens has {tokens.shape[1]} positions, but the cache holds "
            f"{capacity}; make it with init_cache(batch, capacity) of at least "
            f"all tokens to come"
        )
