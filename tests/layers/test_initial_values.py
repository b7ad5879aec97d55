"""Parameters start as the papers and their code have them."""

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import layers
from seqjax import models
from seqjax.layers import rwkv_init

WIDTH = 64


def first(layer, width=WIDTH):
    x = jnp.zeros((1, 1, width))
    tree = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    return jax.tree.map(np.float64, tree)


def softplus(x):
    return np.logaddexp(0, x)


def test_rates_and_steps_of_the_delta_family():
    gated = first(layers.DeltaNet(256, 1, 1, decay=True, output_gate=True), 8)
    rate = np.exp(gated["decay"]["A_log"])
    # Gated DeltaNet: U(0, 16); Kimi Delta Attention: U(1, 16).
    assert rate.min() < 0.5 and 15 < rate.max() <= 16
    kda = first(layers.KDA(256, 2, 2, gate_rank=2), 8)
    rate = np.exp(kda["decay"]["A_log"])
    assert 1 <= rate.min() < 1.5 and 15 < rate.max() <= 16
    for bias in (gated["decay"]["bias"], kda["decay"]["bias"]):
        step = softplus(bias)
        assert 1e-3 * 0.999 < step.min() < 2e-3 and 0.05 < step.max() < 0.1001
    assert kda["decay"]["bias"].shape == (256, 2)
    np.testing.assert_array_equal(kda["gate"]["bias"], 0)
    safe = first(layers.KDA(4, 2, 2, floor=-5.0), 8)
    np.testing.assert_array_equal(safe["decay"]["A_log"], 0)
    comba = first(layers.Comba(4, 2, 2, correction_factor=0.02), 8)
    np.testing.assert_allclose(comba["D"], 0.02)
    np.testing.assert_array_equal(comba["inner_decay"], 1)
    plain = first(layers.DeltaNet(4, 2, 2), 8)
    assert not {"decay", "gate"} & set(plain)


def test_gla_is_xavier_with_a_small_gain():
    gla = first(layers.GLA(4, 64, 64), 256)
    # Gain 2^-2.5: variance 2^-5 * 2 / (fan_in + fan_out).
    np.testing.assert_allclose(
        np.var(gla["qkv"]["kernel"]), 2 / (256 + 768) / 32, rtol=0.05
    )
    assert gla["decay_in"]["kernel"].shape == (256, 16)
    np.testing.assert_array_equal(gla["decay"]["bias"], 0)


def test_mlstm_gates_hold_long_and_write_little():
    mlstm = first(layers.MLSTM(4, 8, 16))
    np.testing.assert_allclose(mlstm["forget_gate"]["bias"], [3, 4, 5, 6])
    np.testing.assert_array_equal(mlstm["input_gate"]["bias"], -10)


def test_lower_bounds_of_a_model_start_at_the_share_of_depth():
    config = models.LanguageModelConfig(
        vocab_size=5, width=8, heads=2, pattern=("attention", "hgrn2"),
        repeats=2, mlp_width=8,
    )  # fmt: skip
    tree = models.abstract_parameters(config)["params"]
    # Over all layers of the model, the first of which is never bounded.
    assert tree["hgrn2_lower_bounds"].shape == (4, 8)
    config.hgrn2.use_lower_bound = False
    tree = models.abstract_parameters(config)["params"]
    assert "hgrn2_lower_bounds" not in tree


def test_rwkv_curves_run_over_channels_and_depth():
    channel = np.arange(WIDTH) / WIDTH
    for layer in (0, 2):
        rising, falling = layer / 2, 1 - layer / 3
        place = dict(layer=layer, layers=3)
        six = first(layers.RWKV6(WIDTH, 4, 16, 16, **place))
        np.testing.assert_allclose(
            six["mix_v"],
            1 - channel**falling - 0.3 * rising,
            rtol=1e-5,
            atol=1e-6,
        )
        along = np.arange(WIDTH) / (WIDTH - 1)
        np.testing.assert_allclose(
            six["decay"]["bias"].reshape(-1),
            -6 + 5 * along ** (0.7 + 1.3 * rising),
            rtol=1e-5,
        )
        ripple = 0.1 * ((np.arange(WIDTH) + 1) % 3 - 1)
        np.testing.assert_allclose(
            six["bonus"].reshape(-1),
            rising * (1 - along) + ripple,
            rtol=1e-4,
            atol=1e-6,
        )
        # Nothing depends on the token at first.
        np.testing.assert_array_equal(six["mix_in"]["kernel"], 0)
        np.testing.assert_array_equal(six["decay_in"]["kernel"], 0)
        seven = first(layers.RWKV7(WIDTH, 4, 16, 16, **place))
        inside = (np.arange(WIDTH) % 16 - 7.5) / 7.5
        np.testing.assert_allclose(
            seven["decay"]["bias"].reshape(-1),
            -5.5
            + 6 * along ** (1 + rising**0.3)
            + 2.5 * inside * np.abs(inside),
            rtol=1e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            seven["mix_k"], 1 - channel ** (0.7 * falling), atol=1e-6
        )
        np.testing.assert_array_equal(seven["out"]["kernel"], 0)
        four = first(layers.RWKV4(WIDTH, WIDTH, **place))
        np.testing.assert_allclose(
            four["decay"], -5 + 8 * along ** (0.7 + 1.3 * rising), atol=1e-5
        )
        np.testing.assert_allclose(
            four["mix_receptance"], channel ** (0.5 * falling), atol=1e-6
        )


def test_layers_of_a_scan_have_the_curves_of_their_own_depth():
    config = models.LanguageModelConfig(
        vocab_size=5, width=8, heads=2, pattern=("rwkv4",), repeats=3,
        mlp_width=8,
    )  # fmt: skip
    model = models.LanguageModel(config)
    tree = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    found = tree["params"]["layers"]["layer_0"]["mixer"]["decay"]
    for layer in range(3):
        init = rwkv_init.rwkv4_decay(rwkv_init.Depth(layer, 3))
        expected = init(jax.random.key(0), (8,), jnp.float32)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-5)
