"""A language model from a layer pattern.

    x = x + mixer(norm(x));  x = x + mlp(norm(x));  logits = norm(x) E^T

The layers of one pattern are written out; its repeats are one `scan` over
stacked parameters, so that tracing and compiling take as long for a hundred
repeats as for one.  Only a decode step, one token with a cache, is written out
layer by layer, so that each layer's state is updated where it lies.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import norms
from seqjax.models import across as across_lib
from seqjax.models import blocks
from seqjax.models import cache as cache_lib
from seqjax.models import checks
from seqjax.models import config as config_lib
from seqjax.models import mixers
from seqjax.parallel import positions
from seqjax.recurrence import segments
from seqjax.recurrence import varying

ModelCache = cache_lib.ModelCache


class LanguageModel(nn.Module):
    """A causal language model over int32 tokens.

    Attributes:
      config: sizes and choices; call `config.validate()` for clear errors.
      across: how the model lies on a mesh, inside `jax.shard_map`; None for
        one device.
    """

    config: config_lib.LanguageModelConfig
    across: across_lib.Across | None = None

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
          ValueError: batch or capacity is no int of at least 1.
        """
        for name, value in (("batch", batch), ("capacity", capacity)):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be an int of at least 1, got {value!r}"
                )
        states = [
            self._empty_states(batch, capacity)
            for _ in range(self.config.repeats)
        ]
        # Whoever takes the cache over writes into its arrays: no two are one.
        return ModelCache(
            jax.tree.map(jnp.copy, sum(states, ())),
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
        self.lower_bounds = {
            kind: self.param(
                f"{kind}_lower_bounds",
                nn.initializers.zeros,
                (config.depth, channels),
                jnp.float32,
            )
            for kind, channels in mixers.lower_bound_channels(config).items()
        }
        self.shared_blocks = tuple(
            self._shared_weights(index) for index in config.shared_uses()
        )
        self.layers = nn.scan(
            blocks.Repeat,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore
            length=config.repeats,
        )(config, self.across)
        self.final_norm = blocks.norm(config)
        if config.embedding_norm:
            self.embedding_norm = blocks.norm(config)

    def __call__(
        self,
        tokens: jax.Array,
        cache: ModelCache | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelCache | None]:
        """Logits of the token after each token.

        Args:
          tokens: int32 [B, T]; what stands at padding does not matter.
          cache: what an earlier call or `init_cache` returned, or None.
          segment_ids: int32 [B, T], document of each token, non-decreasing,
            -1 padding.  None: one document without padding; with a cache,
            the document that each row is in.

        Returns:
          logits [B, T, vocab] float32, and the cache after these tokens, None
          with `across`.  A token outside the vocabulary gives NaN.

        Raises:
          ValueError: wrong shapes or dtypes, more tokens than the cache has
            room for, or a cache with `across`.
        """
        x, cache = self._hidden(tokens, cache, segment_ids)
        return self._logits(x), cache

    def last_logits(
        self,
        tokens: jax.Array,
        cache: ModelCache | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelCache | None]:
        """As `__call__`, but logits [B, vocab] of the last real token only."""
        if self.across is not None and self.across.axis_name is not None:
            raise ValueError(
                "last_logits is for a whole sequence, but time is sharded "
                f"along {self.across.axis_name!r}; take a model without across"
            )
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
    ) -> tuple[jax.Array, ModelCache | None]:
        checks.check_call(self.config, tokens, cache, segment_ids)
        entry = cache_lib.enter(cache, segment_ids, tokens.shape)
        if self.across is not None:
            if cache is not None:
                raise ValueError(
                    "cache must be None in a model that lies across a mesh, "
                    "which returns none; decode with a model without across"
                )
            axis = self.across.axis_name
            if axis is not None:
                found = positions.document_positions(
                    segment_ids, tokens.shape, axis
                )
                entry = entry._replace(positions=found)
        states = None if cache is None else cache.states
        # Without ids every row goes on with the document it is in.
        if states is not None and segment_ids is not None:
            empty = self._empty_states(1, 1) * self.config.repeats
            states = tuple(
                cache_lib.empty_rows(*pair, entry.restart)
                for pair in zip(states, empty, strict=True)
            )
        if segment_ids is not None:
            tokens = jnp.where(segment_ids == segments.PADDING, 0, tokens)
        # Negative indices would count from the end; past it they give NaN.
        tokens = jnp.where(tokens < 0, self.config.vocab_size, tokens)
        x = jnp.take(self.embedding, tokens, axis=0)
        x = x.astype(self.config.dtype)
        if self.config.embedding_scale != 1:
            x = self.config.embedding_scale * x
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        place = mixers.Place(entry.positions, entry.fresh)
        if self.shared_blocks:
            place = place._replace(embedding=x, blocks=self.shared_blocks)
        step = cache is not None and tokens.shape[1] == 1
        through = self._unrolled if step else self._scanned
        x, states = through(x, states, entry.segment_ids, place)
        if self.across is not None:
            return x, None
        return x, ModelCache(states, entry.segment, entry.position)

    def _scanned(
        self,
        x: jax.Array,
        states: tuple[Any, ...] | None,
        segment_ids: jax.Array | None,
        place: mixers.Place,
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """All layers, the repeats in one scan."""
        stacked = (None,) * len(self.config.pattern)
        if states is not None:
            stacked = cache_lib.stack(states, len(self.config.pattern))
        # A scan wants its carry to vary over devices from the start.
        shared = varying.match_varying(
            mixers.shared(self.config, x.shape[:2]), varying.varying_axes(x)
        )
        (x, _), stacked = self.layers(
            (x, shared),
            stacked,
            mixers.rows(self.config, self.lower_bounds),
            segment_ids,
            place,
        )
        return x, cache_lib.unstack(stacked, self.config.repeats)

    def _unrolled(
        self,
        x: jax.Array,
        states: tuple[Any, ...] | None,
        segment_ids: jax.Array | None,
        place: mixers.Place,
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """All layers one after another, with slices of the same parameters.

        A scan would copy every state in and out, and so a decode step would
        cost two copies of the cache.
        """
        if states is None or self.is_initializing():
            return self._scanned(x, states, segment_ids, place)
        params = self.variables["params"]["layers"]
        repeat = blocks.Repeat(self.config, parent=None)
        size, after = len(self.config.pattern), ()
        rows = mixers.rows(self.config, self.lower_bounds)
        stream = x, mixers.shared(self.config, x.shape[:2])
        for i in range(self.config.repeats):
            own, own_rows = jax.tree.map(
                lambda leaf, i=i: leaf[i], (params, rows)
            )
            stream, following = repeat.apply(
                {"params": own},
                stream,
                states[i * size : (i + 1) * size],
                own_rows,
                segment_ids,
                place,
            )
            after += tuple(following)
        return stream[0], after

    def _shared_weights(self, index: int) -> Any:
        """The weights of a shared block, which layers are given."""
        name = f"shared_{index}"
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        place = self.config.shared_blocks.index(index)
        block = mixers.build_shared(self.config, place, parent=None)
        return self.param(name, block.init_weights)

    def _logits(self, x: jax.Array) -> jax.Array:
        """Logits [B, T, vocab], float32, of x [B, T, D]."""
        table = (
            self.embedding if self.config.tie_embeddings else self.unembedding
        )
        logits = jnp.einsum(
            "btd,vd->btv",
            self.final_norm(x),
            table.astype(x.dtype),
            preferred_element_type=norms.wide(x.dtype),
        )
        if self.config.logit_scale != 1:
            logits = self.config.logit_scale * logits
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    @nn.nowrap
    def _empty_states(self, batch: int, capacity: int) -> tuple[Any, ...]:
        return tuple(
            mixers.empty_state(self.config, place, batch, capacity)
            for place in range(len(self.config.pattern))
        )
