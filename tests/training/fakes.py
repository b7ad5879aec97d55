"""A model of two matrices, where the real one would only cost compiling."""

import jax
import jax.numpy as jnp


class TwoMatrices:
    """logits = tanh(E[token]) W, with a LanguageModel's way of being called."""

    def __init__(self, config=None, across=None):
        self.config, self.across = config, across
        self.vocab, self.width = (config.vocab_size if config else 11), 6

    def init(self, key, tokens):
        del tokens
        first, second = jax.random.split(key)
        return {
            "params": {
                "embedding": jax.random.normal(first, (self.vocab, self.width)),
                "out": {
                    "kernel": jax.random.normal(
                        second, (self.width, self.vocab)
                    )
                },
            }
        }

    def apply(self, params, tokens, cache=None, segment_ids=None, rngs=None):
        del segment_ids, rngs
        params = params["params"]
        x = jnp.tanh(params["embedding"][tokens])
        return x @ params["out"]["kernel"], cache
