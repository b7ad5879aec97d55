"""What generation refuses, and how it says so; next to nothing is compiled."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import generation
from seqjax import models
from seqjax.models import checks

B, T, CAPACITY = 3, 9, 15
TOKENS = np.ones((B, T), np.int32)
IDS = np.zeros((B, T), np.int32)
SAMPLER = generation.Sampler(1.0)


@functools.cache
def setup():
    config = models.LanguageModelConfig(
        vocab_size=29, width=16, pattern=("attention",), heads=2, mlp_width=8
    )
    return models.LanguageModel(config), models.abstract_parameters(config)


def cache_of(lengths=(9, 4, 1)):
    """A cache with that many tokens in its rows."""
    model, _ = setup()
    empty = model.init_cache(B, CAPACITY)
    (state,) = empty.states
    state = state._replace(length=jnp.asarray(lengths, jnp.int32))
    return generation.DecodeCache(
        empty._replace(states=(state,)),
        jnp.zeros((B, 29)),
        jnp.zeros((B,), bool),
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an int .* got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be an int .* got -3"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens must be an int .* got 2\.0"),
        ({"max_new_tokens": True}, "max_new_tokens must be an int .* got True"),
        ({"max_new_tokens": "2"}, "max_new_tokens must be an int .* got '2'"),
        ({"temperature": 1.0}, "key must be a random key at temperature 1.0"),
        ({"temperature": np.nan}, "temperature must be a finite .* got nan"),
        ({"temperature": "1"}, "temperature must be a finite .* got '1'"),
        ({"key": 0}, "key must be one random key, got 0; pass jax.random.key"),
        ({"key": np.ones(2)}, r"key must be .* got float64 \[2\]"),
        ({"top_k": 3}, "None at temperature 0"),
        ({"tokens": "hello"}, r"tokens must be int32 \[B, T\] .* got <U5"),
        ({"tokens": TOKENS[0]}, r"tokens must be int32 .* got int32 \[9\]"),
        ({"tokens": TOKENS[:, :0]}, r"B and T at least 1, got int32 \[3, 0\]"),
        ({"tokens": TOKENS * 29}, r"\[0, 29\), got 29 at row 0, column 0"),
        ({"tokens": -TOKENS}, r"\[0, 29\), got -1 at row 0, column 0"),
        ({"prompt_lengths": [1, 2]}, r"prompt_lengths must be int \[3\]"),
        ({"prompt_lengths": 4}, r"prompt_lengths must be int \[3\]"),
        ({"prompt_lengths": np.ones(3)}, r"int \[3\].* got float64 \[3\]"),
        (
            {"prompt_lengths": np.array([0, 2, 3])},
            r"between 1 and 9 .*\[0, 2, 3",
        ),
    ],
)
def test_generate(changes, text):
    arguments = {"tokens": TOKENS, "max_new_tokens": 2} | changes
    model, params = setup()
    with pytest.raises(ValueError, match=text):
        generation.generate(model, params, arguments.pop("tokens"), **arguments)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n": 0}, "n must be an int of at least 1, got 0"),
        ({"n": 1.5}, "n must be an int of at least 1, got 1.5"),
        ({"n": True}, "n must be an int of at least 1, got True"),
        ({"n": 7}, "n asks for 7 more .* holds 15 and 9 are written"),
        ({"sampler": "greedy"}, "sampler must be a Sampler, got 'greedy'"),
        ({"sampler": SAMPLER}, "key must be a random key at temperature 1.0"),
        (
            {"sampler": SAMPLER, "key": jnp.zeros((3, 2), jnp.uint32)},
            r"key must be one random key, got uint32 \[3, 2\]",
        ),
        ({"stop_tokens": 3}, r"stop_tokens must be a sequence .* got 3"),
        ({"stop_tokens": "end"}, r"a sequence of ints in \[0, 29\), got 'end'"),
        ({"stop_tokens": (1, 29)}, r"ints in \[0, 29\), got \(1, 29\)"),
        ({"stop_tokens": [1.0]}, r"ints in \[0, 29\), got \[1\.0\]"),
        ({"stop_tokens": (-1,)}, r"ints in \[0, 29\), got \(-1,\)"),
        ({"cache": None}, "cache must be a DecodeCache, got NoneType"),
    ],
)
def test_decode(changes, text):
    model, params = setup()
    arguments = {"cache": cache_of(), "n": 6} | changes
    with pytest.raises(ValueError, match=text):
        generation.decode(model, params, **arguments)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": [[1, 2]]}, r"tokens must be int32 \[B, T\], got list"),
        ({"tokens": TOKENS[:, :0]}, r"T at least 1, got int32 \[3, 0\]"),
        ({"tokens": TOKENS * 0.5}, "tokens must be int32 .* got float64"),
        ({"segment_ids": IDS[:, :4]}, r"segment_ids must be int32 \[3, 9\]"),
        (
            {"segment_ids": np.where(np.eye(3, 9)[::-1] > -1, -1, IDS)},
            "every row, got none in row 0",
        ),
        ({"cache": None}, "cache must be a ModelCache, got None"),
        ({"cache": "empty"}, "cache must be a ModelCache of 1 layers, got str"),
        (
            {"tokens": np.ones((3, 7), np.int32)},
            "row 0 has 7 more .* holds 15 and 9 are written; .* at least 16",
        ),
    ],
)
def test_prefill(changes, text):
    model, params = setup()
    arguments = {"tokens": TOKENS[:, :5], "cache": cache_of().model}
    if "segment_ids" in changes:
        arguments["tokens"] = TOKENS
    with pytest.raises(ValueError, match=text):
        generation.prefill(model, params, **(arguments | changes))


def test_room_is_counted_in_real_tokens_of_the_document():
    model, _ = setup()
    cache = cache_of((4, 9, 1)).model._replace(segment=jnp.zeros(B, jnp.int32))

    def check(lengths, document):
        real = np.arange(T) < np.array(lengths)[:, None]
        ids = np.where(real, document, -1).astype(np.int32)
        checks.check_call(model.config, TOKENS, cache, ids)

    check((9, 6, 9), 0)
    check((9, 9, 9), 5)  # another document: the rows are emptied
    with pytest.raises(ValueError, match="row 1 has 7 more .* 9 are written"):
        check((9, 7, 9), 0)
