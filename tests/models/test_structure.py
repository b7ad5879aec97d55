"""Scan over layers, remat, precision, and what a model costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models

CONFIG = models.LanguageModelConfig(
    vocab_size=11,
    width=16,
    pattern=("lightning", "simple_gla"),
    repeats=2,
    heads=2,
    mlp_width=24,
    lightning=layers.LightningOptions(slopes="tnl_code"),
    mamba2=layers.Mamba2Options(head_dim=8, state_size=4),
    mamba2_attention=layers.Mamba2AttentionOptions(
        mamba2=layers.Mamba2Options(head_dim=8, state_size=4)
    ),
)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9), np.int32)
IDS = np.array([[0] * 4 + [1] * 5, [2] * 6 + [-1] * 3], np.int32)


@functools.cache
def params(config=CONFIG):
    config.validate()
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: 0.3 * noise.standard_normal(leaf.shape, np.float32) + 0.1,
        models.abstract_parameters(config),
    )


@functools.cache
def loss_and_gradients(remat):
    model = models.LanguageModel(dataclasses.replace(CONFIG, remat=remat))

    def loss(variables):
        logits, _ = model.apply(variables, TOKENS, None, IDS)
        likely = jax.nn.log_softmax(logits)[:, :-1]
        target = jnp.asarray(TOKENS[:, 1:, None])
        picked = jnp.take_along_axis(likely, target, axis=-1)[..., 0]
        return -jnp.sum(jnp.where(IDS[:, 1:] == IDS[:, :-1], picked, 0)), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params())


def unrolled(variables):
    """The model, layer after layer, each with its own slice and index."""
    tree = variables["params"]
    x = jnp.asarray(tree["embedding"])[TOKENS]
    for depth in range(CONFIG.depth):
        repeat, place = divmod(depth, 2)
        own = jax.tree.map(
            lambda leaf, r=repeat: leaf[r], tree["layers"][f"layer_{place}"]
        )
        mixer = layers.SimpleGLA(2, 8)
        if CONFIG.pattern[place] == "lightning":
            mixer = layers.Lightning(
                2, 8, slopes="tnl_code", layer=depth, layers=CONFIG.depth
            )

        def call(module, name, *args, own=own):
            return module.apply({"params": own[name]}, *args)

        normed = call(layers.RMSNorm(), "mixer_norm", x)
        x = x + call(mixer, "mixer", normed, None, IDS)[0]
        normed = call(layers.RMSNorm(), "mlp_norm", x)
        x = x + call(layers.SwiGLU(24), "mlp", normed)
    x = layers.RMSNorm().apply({"params": tree["final_norm"]}, x)
    return jnp.einsum("btd,vd->btv", x, tree["embedding"])


def test_scanned_is_unrolled():
    (_, logits), _ = loss_and_gradients(False)
    expected = jax.jit(unrolled)(params())
    real = IDS >= 0
    np.testing.assert_allclose(
        logits[real], expected[real], rtol=2e-5, atol=2e-5
    )


def test_gradients_are_finite_and_those_of_remat():
    (loss, _), gradients = loss_and_gradients(False)
    (again, _), rematted = loss_and_gradients(True)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    for a, b in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(rematted), strict=True
    ):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(a).max())


def test_program_does_not_grow_with_depth():
    sizes = []
    for repeats in (2, 20):
        config = dataclasses.replace(CONFIG, repeats=repeats)
        model = models.LanguageModel(config)
        lowered = jax.jit(
            jax.grad(lambda p, m=model: m.apply(p, TOKENS)[0].sum())
        ).lower(models.abstract_parameters(config))
        sizes.append(lowered.as_text().count("\n"))
    assert sizes[0] == sizes[1] > 100


def test_one_trace_for_one_shape():
    model = models.LanguageModel(CONFIG)
    traces = []

    @jax.jit
    def call(variables, tokens, ids):
        traces.append(tokens.shape)
        return model.apply(variables, tokens, None, ids)[0]

    for ids in (IDS, np.zeros_like(IDS)):
        call.lower(params(), TOKENS, ids)
    assert len(traces) == 1


def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_wide():
    config = dataclasses.replace(
        CONFIG, dtype="bfloat16", pattern=("simple_gla", "attention"), repeats=1
    )
    model = models.LanguageModel(config)
    variables = models.abstract_parameters(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype("float32")
    }
    logits, cache = jax.eval_shape(model.apply, variables, TOKENS)
    assert logits.dtype == jnp.float32
    assert cache.states[0].memory.dtype == jnp.float32
    assert cache.states[1].k.dtype == jnp.bfloat16
    config = dataclasses.replace(config, pattern=("simple_gla",))
    logits = []
    for dtype in ("bfloat16", "float32"):
        model = models.LanguageModel(dataclasses.replace(config, dtype=dtype))
        small = jax.tree.map(lambda leaf: 0.5 * leaf, params(config))
        logits.append(jax.jit(model.apply)(small, TOKENS, None, IDS)[0])
    low, high = (np.asarray(x)[IDS >= 0] for x in logits)
    assert 0 < np.abs(low - high).max() < 0.05 * np.abs(high).max()


def test_state_keeps_its_type_through_a_call():
    # In float64 test_every_mixer holds them to theirs.
    for kind in CONFIG.pattern_names():
        config = dataclasses.replace(CONFIG, pattern=(kind,), dtype="bfloat16")
        model = models.LanguageModel(config)
        cache = jax.eval_shape(lambda m=model: m.init_cache(2, 12))
        _, after = jax.eval_shape(
            model.apply, models.abstract_parameters(config), TOKENS, cache
        )
        assert jax.tree.all(
            jax.tree.map(
                lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
                cache,
                after,
            )
        ), kind


def test_untied_embeddings_have_their_own_table():
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    tied = models.parameter_count(models.abstract_parameters(CONFIG))
    untied = models.abstract_parameters(config)
    assert models.parameter_count(untied) == tied + 11 * 16
    assert untied["params"]["unembedding"].shape == (11, 16)


def test_initial_logits_are_small_and_residuals_scaled():
    variables = jax.jit(models.LanguageModel(CONFIG).init)(
        jax.random.key(0), TOKENS[:, :1]
    )
    tree = variables["params"]["layers"]["layer_1"]
    # lecun normal over sqrt(2 * depth), depth 4.
    np.testing.assert_allclose(
        np.std(tree["mlp"]["down"]["kernel"]), 24**-0.5 / 8**0.5, rtol=0.1
    )
    # Layers of a scan are drawn apart.
    down = tree["mlp"]["down"]["kernel"]
    assert not np.allclose(down[0], down[1])


def test_accounting():
    config = dataclasses.replace(
        CONFIG, pattern=("simple_gla", "attention", "mamba2")
    )
    # conv 3 * 48 and memory 2 * 8 * 8 numbers of 4 bytes; keys, values 2 * 16
    # numbers and two ids a token, and the length.
    sizes = models.state_bytes(config, 10)
    assert sizes["simple_gla"] == 4 * (3 * 48 + 128)
    assert sizes["attention"] == 10 * (4 * 32 + 8) + 4
    # conv 3 * (32 + 2 * 4) and memory 4 heads * 8 * 4.
    assert sizes["mamba2"] == 4 * (3 * 40 + 128)
    assert models.state_bytes(config, 20)["simple_gla"] == sizes["simple_gla"]
    variables = models.abstract_parameters(config)
    matrices = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if path[-1].key in ("kernel", "weight")
    )
    # A query of T = 9 sees 5 tokens on average: 4 * 16 * 5 FLOPs.
    mixing = 2 * (5 * 128 + 4 * 16 * 5 + 5 * 128)
    expected = 3 * (2 * (matrices + 11 * 16) + mixing)
    assert models.flops_per_token(config, 9) == pytest.approx(expected)


def test_weight_decay_spares_scales_biases_and_decays():
    config = dataclasses.replace(CONFIG, pattern=("simple_gla", "mamba2"))
    mask = models.weight_decay_mask(models.abstract_parameters(config))
    tree = mask["params"]
    assert tree["embedding"] and not tree["final_norm"]["scale"]
    mamba = tree["layers"]["layer_1"]["mixer"]
    assert mamba["in"]["kernel"] and mamba["conv"]["weight"]
    assert not any(
        (mamba["A_log"], mamba["D"], mamba["dt"]["bias"], mamba["conv"]["bias"])
    )


def test_call_errors():
    model = models.LanguageModel(
        dataclasses.replace(CONFIG, pattern=("attention",))
    )
    variables = models.abstract_parameters(model.config)

    def call(*args):
        return jax.eval_shape(model.apply, variables, *args)

    with pytest.raises(ValueError, match=r"tokens must be int32 .* float32"):
        call(np.float32(TOKENS))
    with pytest.raises(ValueError, match=r"T at least 1, got int32 \[2, 0\]"):
        call(TOKENS[:, :0])
    with pytest.raises(ValueError, match=r"tokens must be int32 .* got list"):
        model.apply(variables, [[1]])
    with pytest.raises(ValueError, match="a ModelCache of 2 layers, got tuple"):
        model.apply(variables, TOKENS, ())
    with pytest.raises(ValueError, match=r"segment_ids must be int32 \[2, 9\]"):
        call(TOKENS, None, IDS[:, :3])
    with pytest.raises(ValueError, match="got 3 rows for 2"):
        call(TOKENS, model.init_cache(3, 9))
    with pytest.raises(ValueError, match="9 positions, but the cache holds 8"):
        call(TOKENS, model.init_cache(2, 8))
    with pytest.raises(ValueError, match="capacity must be an int .* 1, got 0"):
        model.init_cache(2, 0)
