"""Training with time sharded is training on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import models
from seqjax.training import feeding
from seqjax.training import over_mesh
from tests.parallel import hlo
from tests.training import sharded

B, T = sharded.B, sharded.T
HYBRID = ("simple_gla", "attention")
OTHERS = ("gated_delta_net", "mamba")
ONE = (1, 1, 1)
ALL = (2, 2, 2, "prefix_scan", "ring")
STEPS = 3
RATE = 1e-2


@functools.cache
def run(pattern, mesh, **changes):
    return sharded.Run(sharded.get_config(pattern, mesh, **changes))


@functools.cache
def trained(pattern, mesh, **changes):
    return run(pattern, mesh, **changes).train(STEPS)


def assert_trains_like_one_device(pattern, mesh, **changes):
    found, params = trained(pattern, mesh, **changes)
    expected, expected_params = trained(pattern, ONE)
    for metrics, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
        assert metrics["tokens"] == wanted["tokens"]
        assert metrics["finite"]
    assert found[0]["grad_norm"] > 0.2
    np.testing.assert_allclose(
        found[0]["grad_norm"], expected[0]["grad_norm"], rtol=1e-5
    )

    # Adam's first steps look at signs: gradients that are nearly 0 may turn.
    def close(path, leaf, wanted):
        error = np.abs(leaf - wanted)
        assert error.mean() < 1e-3 * RATE, jax.tree_util.keystr(path)
        assert error.max() < STEPS * RATE, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(close, params, expected_params)


@pytest.mark.parametrize("mesh", [(1, 1, 8), ALL])
def test_training_is_that_of_one_device(mesh):
    assert_trains_like_one_device(HYBRID, mesh)


@pytest.mark.full
@pytest.mark.parametrize(
    "mesh", [(2, 1, 4), (1, 1, 8), (2, 2, 2, "ring"), (2, 2, 1)]
)
def test_other_mixers_and_meshes(mesh):
    assert_trains_like_one_device(OTHERS, mesh)


@pytest.mark.full
def test_remat_and_accumulation():
    config = sharded.get_config(HYBRID, ALL, remat=True)
    config.mesh.data, config.accumulation = 1, 2
    found, _ = sharded.Run(config).train(STEPS)
    for metrics, wanted in zip(found, trained(HYBRID, ONE)[0], strict=True):
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
        np.testing.assert_allclose(
            metrics["grad_norm"], wanted["grad_norm"], rtol=1e-4
        )


def test_evaluation_is_that_of_one_device():
    found = run(HYBRID, (1, 1, 8)).evaluate()
    wanted = trained(HYBRID, ONE)[0][0]
    assert found["tokens"] == wanted["tokens"]
    np.testing.assert_allclose(
        found["nats"] / found["tokens"], wanted["loss"], rtol=1e-5
    )


def test_nothing_of_full_length_is_gathered():
    # More numbers than any state, border or parameter has here.
    full = 4 * B * T
    moved = hlo.collectives(run(HYBRID, (1, 1, 8)).step)
    assert {kind for kind, _ in moved} <= {
        "all-gather",
        "all-reduce",
        "reduce-scatter",
    }
    # Keys and values of 2 heads of 8 channels, and an id a token.
    large = [item for item in moved if item[1] >= full]
    assert large == [
        ("all-gather", full * (2 * 16 + 1)),
        ("reduce-scatter", full // 8 * 2 * 16),
    ]
    # The ring passes on those of one shard.
    shard = full // 2 // 2 // 2
    moved = hlo.collectives(run(HYBRID, ALL).step)
    large = {kind for kind, size in moved if size >= shard}
    assert large == {"collective-permute"}
    assert max(size for _, size in moved) <= shard * (2 * 16 + 1)


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [*models.LanguageModelConfig.pattern_names(), "shared_block"]
)
@jax.enable_x64(True)
def test_every_mixer(name):
    """Loss and gradients, also of learned first states, in double."""
    changes = {"mlps": ("rwkv_channels",)} if name.startswith("rwkv") else {}
    if name == "shared_block":
        name, changes = "simple_gla", {"shared_blocks": (0,)}
    config = sharded.get_config(
        (name,),
        (1, 1, 2),
        repeats=2,
        dtype="float64",
        learned_initial_state=True,
        **changes,
    ).model
    noise = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.3 * noise.standard_normal(leaf.shape) + 0.1,
        models.abstract_parameters(config),
    )
    batch = sharded.make_batch(0, (3, 22))

    def of(axis):
        layout = None
        if axis is not None:
            across = models.Across(
                jax.tree.map(lambda _: jax.P(), params), axis
            )
            layout = over_mesh.Layout(sharded.make_mesh((1, 1, 2)), across)
        model = models.LanguageModel(config, layout and layout.across)

        def loss(params, batch):
            logits, _ = model.apply(
                params, batch["inputs"], segment_ids=batch["segment_ids"]
            )
            picked = jnp.take_along_axis(
                jax.nn.log_softmax(logits), batch["targets"][..., None], axis=2
            )
            return -jnp.sum(picked[..., 0] * batch["weights"])

        return jax.jit(
            over_mesh.sums_and_gradients(jax.value_and_grad(loss), layout)
        )(params, batch)

    def close(path, a, b):
        scale = np.abs(b).max()
        name = jax.tree_util.keystr(path)
        assert scale > 1e-9, name
        np.testing.assert_allclose(a / scale, b / scale, 0, 1e-8, err_msg=name)

    jax.tree_util.tree_map_with_path(close, of("seq"), of(None))


def test_each_process_reads_the_rows_of_its_devices():
    mesh = sharded.make_mesh((2, 1, 4))
    devices = list(mesh.devices.flat)
    batch = sharded.make_batch(0)["inputs"]
    for count in (1, 2, 4, 8):  # processes of 8 / count devices
        for process, own in enumerate(np.split(np.array(devices), count)):
            feed = feeding.feed(mesh, (B, T), list(own))
            parts = min(count, 2)
            assert (feed.count, feed.index) == (
                parts,
                process * parts // count,
            )
    # A process that holds other devices reads all rows that it needs.
    assert feeding.feed(mesh, (B, T), [devices[0], devices[4]])[2:] == (0, 1)
    feed = feeding.feed(mesh, (B, T))
    placed = feed.put(batch)
    np.testing.assert_array_equal(placed, batch)
    assert {s.data.shape for s in placed.addressable_shards} == {
        (B // 2, T // 4)
    }
    with pytest.raises(ValueError, match=f"{B} rows of {T} tokens"):
        feed.put(batch[:1])


def test_a_model_across_a_mesh_has_no_cache():
    config = sharded.get_config(("attention",)).model
    alone = models.LanguageModel(config)
    params = models.abstract_parameters(config)
    across = models.LanguageModel(config, models.Across())
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    cache = jax.eval_shape(lambda: alone.init_cache(2, 4))
    assert jax.eval_shape(across.apply, params, tokens)[1] is None
    with pytest.raises(ValueError, match="cache must be None"):
        jax.eval_shape(across.apply, params, tokens, cache)
