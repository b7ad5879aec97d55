"""Blocks whose weights several layers share: one set, read at every use."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models

B, T, VOCAB, WIDTH = 2, 9, 11, 8
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (B, T), np.int32)
IDS = np.array([[0] * 4 + [-1] + [1] * 4, [2] * 7 + [-1] * 2], np.int32)
WHOLE = np.zeros((B, T), np.int32)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def get_config(shared_blocks, repeats=1, **changes):
    config = models.LanguageModelConfig(
        vocab_size=VOCAB,
        width=WIDTH,
        pattern=("gated_convolution",) * len(shared_blocks),
        mlps=("none",),
        shared_blocks=shared_blocks,
        repeats=repeats,
        heads=2,
        mlp_width=12,
        dtype="float64",
        **changes,
    )
    config.shared_block.adapter_rank = 3
    config.shared_block.attention_adapters = True
    return config


TIED = get_config((0, 0))
UNTIED = get_config((0, 1))
SCANNED = get_config((0,), repeats=2)


def noise(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32) + 0.1,
        shapes,
    )


@functools.cache
def params(config):
    """The same numbers for all three models."""
    config.validate()
    tied = noise(models.abstract_parameters(TIED))["params"]
    if config is TIED:
        return {"params": tied}
    if config is UNTIED:
        return {"params": tied | {"shared_1": tied["shared_0"]}}
    stacked = jax.tree.map(
        lambda *rows: np.concatenate(rows), *tied["layers"].values()
    )
    return {"params": tied | {"layers": {"layer_0": stacked}}}


@functools.cache
def program(config):
    model = models.LanguageModel(config)

    @jax.jit
    def call(variables, ids):
        def loss(variables):
            logits, _ = model.apply(variables, TOKENS, None, ids)
            weights = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
            real = (ids >= 0)[..., None]
            return jnp.sum(jnp.where(real, logits * weights, 0)), logits

        (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(variables)
        return logits, grads["params"]

    return call


@functools.cache
def found(config):
    logits, grads = program(config)(params(config), IDS)
    return np.asarray(logits)[IDS >= 0], grads


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), a, b
    )


def test_gradients_of_all_uses_add_up():
    (tied, grads), (untied, apart) = found(TIED), found(UNTIED)
    np.testing.assert_allclose(tied, untied, atol=1e-12)
    summed = jax.tree.map(jnp.add, apart.pop("shared_0"), apart.pop("shared_1"))
    # Gradients are float32, as the parameters are.
    close(grads, apart | {"shared_0": summed})
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads))


def test_repeats_read_the_same_block():
    (scanned, grads), (tied, expected) = found(SCANNED), found(TIED)
    np.testing.assert_allclose(scanned, tied, atol=1e-12)
    close(grads["shared_0"], expected["shared_0"])


@pytest.mark.full
def test_remat_changes_nothing():
    again = dataclasses.replace(SCANNED, remat=True)
    logits, grads = program(again)(params(SCANNED), IDS)
    np.testing.assert_allclose(
        np.asarray(logits)[IDS >= 0], found(SCANNED)[0], atol=1e-12
    )
    close(grads, found(SCANNED)[1])


def test_steps_are_the_whole():
    model = models.LanguageModel(SCANNED)
    whole = program(SCANNED)(params(SCANNED), WHOLE)[0]
    step, cache = jax.jit(model.apply), model.init_cache(B, T)
    for t in range(T):
        logits, cache = step(params(SCANNED), TOKENS[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=1e-12)


def test_program_does_not_grow_with_repeats():
    sizes = []
    for repeats in (2, 20):
        config = dataclasses.replace(SCANNED, repeats=repeats)
        shapes = models.abstract_parameters(config)
        lowered = program(config).lower(shapes, IDS)
        sizes.append(lowered.as_text().count("\n"))
    assert sizes[0] == sizes[1]


def test_the_block_is_its_equation():
    """Grouped heads and no positions, against numpy."""
    options = layers.SharedBlockOptions(
        attention=layers.AttentionOptions(key_value_heads=1, rotary_base=None),
        adapter_rank=3,
        attention_adapters=True,
    )
    host = layers.Host(WIDTH, 1, 2, dtype=jnp.dtype("float64"))
    block = options.build(host, 12, parent=None)
    shared = noise(jax.eval_shape(block.init_weights, jax.random.key(0)))
    x, e = np.random.default_rng(2).standard_normal((2, B, T, WIDTH))
    own = noise(jax.eval_shape(block.init, jax.random.key(0), shared, x, e))
    y, state = jax.jit(block.apply)(own, shared, x, e)
    assert state.k.shape == (B, T, 1, WIDTH)

    def rms(x, scale):
        x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        return x * scale["scale"]

    def mapped(x, part, name):
        first, last = (
            own["params"][f"{name}_adapter{tail}"]["kernel"]
            for tail in ("_in", "")
        )
        maps = part if isinstance(part, list) else [part]
        kernel = np.concatenate([m["kernel"] for m in maps], axis=1)
        return x @ kernel.reshape(len(kernel), -1) + x @ first @ last

    u = rms(np.concatenate([x, e], axis=-1), shared["attention_norm"])
    q, k, v = (
        mapped(u, shared["attention"][name], name).reshape(B, T, -1, WIDTH)
        for name in ("query", "key", "value")
    )
    scores = np.einsum("bthk,bsk->bhts", q, k[:, :, 0]) * (WIDTH / 2) ** -0.5
    weights = np.exp(scores) * np.tri(T)
    weights /= weights.sum(axis=-1, keepdims=True)
    o = np.einsum("bhts,bsk->bthk", weights, v[:, :, 0])
    h = np.einsum("bthk,hkd->btd", o, shared["attention"]["out"]["kernel"])
    h = rms(h, shared["mlp_norm"])
    maps = [shared["mlp"]["gate"], shared["mlp"]["up"]]
    gate, up = np.split(mapped(h, maps, "mlp"), 2, axis=-1)
    gelu = gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
    expected = (gelu * up) @ shared["mlp"]["down"]["kernel"]
    expected = expected @ own["params"]["out"]["kernel"]
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_accounting():
    # Keys and values of 2 * 16 numbers, two ids a token, and the length.
    sizes = models.state_bytes(TIED, 10)
    assert sizes["shared_block"] == 10 * (8 * 32 + 8) + 4
    assert sizes["gated_convolution"] == 2 * 8 * WIDTH
    assert TIED.count("shared_block") == 2
    one = models.parameter_count(params(TIED)["params"]["shared_0"])
    counts = [models.parameter_count(params(c)) for c in (TIED, UNTIED)]
    assert counts[1] - counts[0] == one
    # A use costs what a block of its own costs.
    flops = [models.flops_per_token(c, T) for c in (TIED, UNTIED, SCANNED)]
    assert flops[0] == flops[1] == flops[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shared_blocks": (0, None, 0)}, "tuple of one or 2 .as the pattern"),
        ({"shared_blocks": ("0", None)}, "of None and indices from 0"),
        ({"shared_blocks": (1, None)}, "all blocks from 0 to the last one"),
        ({"shared_blocks": (-1, 0)}, "all blocks from 0 to the last one"),
        ({"norm_places": ("stream",)}, "take 'before' or 'after'"),
        ({"heads": 3}, "width=16 and heads=3.* or set shared_block.attention"),
        (
            {"shared_block": layers.SharedBlockOptions(adapter_rank=0)},
            "shared_block.adapter_rank must be .* at least 1 or None, got 0",
        ),
        (
            {
                "shared_block": layers.SharedBlockOptions(
                    attention_adapters=True
                )
            },
            "needs a rank; set shared_block.adapter_rank",
        ),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TIED, **changes).validate()


def test_more_tokens_than_the_shared_block_holds():
    model = models.LanguageModel(TIED)
    with pytest.raises(ValueError, match="9 positions, but the cache holds 8"):
        jax.eval_shape(
            model.apply, params(TIED), TOKENS, model.init_cache(B, 8)
        )
