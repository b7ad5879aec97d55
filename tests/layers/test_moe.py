"""Mixture of experts against numpy, every token and expert by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models
from seqjax.layers import routing

B, T, D, E, F = 2, 9, 6, 8, 5
# Mixtral; Jamba; Qwen3-Next; DeepSeek-V3 and Kimi; Nemotron.
CHOICES = {
    "softmax": {"active": 2},
    "plain": {"active": 3, "renormalize": False},
    "shared": {"active": 2, "shared_width": 4, "shared_gate": True},
    "grouped": {
        "active": 3,
        "scores": "sigmoid",
        "correction": True,
        "groups": 4,
        "active_groups": 2,
        "factor": 2.5,
        "shared_width": 3,
    },
    "ungated": {
        "active": 2,
        "scores": "sigmoid",
        "correction": True,
        "gated": False,
        "activation": "relu2",
    },
}


def _act(name, x):
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    return x / (1 + np.exp(-x))


def _mlp(params, x, act, e=...):
    names = params.keys() & {"gate", "up", "down"}
    kernels = {name: params[name]["kernel"][e] for name in names}
    hidden = x @ kernels["up"]
    if "gate" in kernels:
        hidden = _act(act, x @ kernels["gate"]) * hidden
    else:
        hidden = _act(act, hidden)
    return hidden @ kernels["down"]


def _token(params, x, layer):
    """One token [D] as the papers have it."""
    logits = x @ params["router"]["kernel"]
    if layer.scores == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    wanted = scores + params.get("correction", 0)
    size = E // layer.groups
    best = [
        sum(sorted(wanted[g * size : (g + 1) * size])[-2:])
        for g in range(layer.groups)
    ]
    groups = np.argsort(best)[-layer.active_groups :]
    chosen = [e for e in np.argsort(-wanted) if e // size in groups]
    chosen = chosen[: layer.active]
    weights = scores[chosen]
    if layer.renormalize:
        weights = weights / weights.sum()
    y = sum(
        layer.factor * w * _mlp(params, x, layer.activation, e)
        for w, e in zip(weights, chosen, strict=True)
    )
    if layer.shared_width:
        shared = _mlp(params["shared"], x, layer.activation)
        if layer.shared_gate:
            gate = x @ params["shared_gate"]["kernel"]
            shared = shared / (1 + np.exp(-gate))
        y = y + shared
    return y


def _made(choice, form):
    layer = layers.MoE(E, width=F, form=form, **CHOICES[choice])
    noise = np.random.default_rng(0)
    x = jnp.asarray(noise.standard_normal((B, T, D), np.float32))
    params = jax.tree.map(
        lambda leaf: noise.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(layer.init, jax.random.key(0), x)["params"],
    )
    return layer, params, x


@pytest.mark.parametrize("choice", CHOICES)
def test_forms_are_the_sum_over_the_chosen(choice):
    found = {}
    for form in ("dense", "grouped"):
        layer, params, x = _made(choice, form)
        ct = np.random.default_rng(1).standard_normal(x.shape, np.float32)

        def loss(params, x, layer=layer, ct=ct):
            y, state = layer.apply({"params": params}, x)
            assert state is None
            return jnp.sum(y * ct), y

        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, y), grads = run(params, x)
        wide = jax.tree.map(np.float64, params)
        expected = [
            _token(wide, t, layer) for t in np.float64(x).reshape(-1, D)
        ]
        expected = np.reshape(expected, x.shape)
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
        found[form] = grads
    flat = jax.tree_util.tree_leaves_with_path(found["dense"])
    for (path, a), b in zip(
        flat, jax.tree.leaves(found["grouped"]), strict=True
    ):
        error = np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-6)
        assert error < 1e-5, path
        used = "correction" not in jax.tree_util.keystr(path)
        assert bool(np.any(a)) == used, path


def test_gradient_against_differences():
    layer, params, x = _made("grouped", "dense")
    way = jax.tree.map(
        lambda leaf: np.random.default_rng(2).standard_normal(leaf.shape),
        params,
    )
    way["correction"] *= 0  # it decides, and has no gradient
    grads = jax.grad(
        lambda p: jnp.sum(jnp.sin(layer.apply({"params": p}, x)[0]))
    )(params)
    slope = sum(
        np.sum(np.float64(g) * w)
        for g, w in zip(
            jax.tree.leaves(grads), jax.tree.leaves(way), strict=True
        )
    )

    def at(step):
        moved = jax.tree.map(lambda p, w: np.float64(p) + step * w, params, way)
        tokens = [_token(moved, t, layer) for t in np.float64(x).reshape(-1, D)]
        return np.sum(np.sin(tokens))

    step = 1e-6
    measured = (at(step) - at(-step)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=1e-4)


def test_equal_scores_take_the_first_expert():
    scores = jnp.full((1, 6), 0.5)
    _, index = routing.route(scores, 2, groups=3, active_groups=1)
    np.testing.assert_array_equal(index, [[0, 1]])


def test_a_model_decodes_as_it_reads_and_counts_the_experts_it_uses():
    config = models.LanguageModelConfig(
        vocab_size=11,
        width=D,
        heads=2,
        head_dim=4,
        pattern=("simple_gla",),
        mlps=("moe",),
        moe=layers.MoEOptions(width=F, experts=E, active=2),
    )
    config.validate()
    model = models.LanguageModel(config)
    tokens = np.arange(8, dtype=np.int32)[None]
    apply = jax.jit(model.apply)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    whole, _ = apply(params, tokens)
    cache = model.init_cache(1, 8)
    for t in range(8):
        logits, cache = apply(params, tokens[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[0, 0], whole[0, t], atol=1e-5)
    few = models.flops_per_token(config, 8)
    config.moe.active = E
    assert models.flops_per_token(config, 8) - few == 6 * (E - 2) * 3 * D * F


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 3}, "moe.groups must divide moe.experts=8"),
        ({"groups": 4, "active": 3}, "moe.active must be at most 2"),
        ({"shared_gate": True}, "set moe.shared_width"),
        ({"scores": "max"}, "moe.scores must be one of"),
    ],
)
def test_options(options, said):
    config = models.LanguageModelConfig(
        mlps=("moe",), moe=layers.MoEOptions(**options)
    )
    with pytest.raises(ValueError, match=said):
        config.validate()
