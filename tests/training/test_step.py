"""The train step: accumulation, clipping, schedule, numbers that are bad."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax.training import checkpoints
from seqjax.training import optimizer as optimizer_lib
from seqjax.training import rows
from seqjax.training import state as state_lib
from seqjax.training import step as step_lib
from tests.training import fakes
from tests.training import tiny


def _batch(seed, rows_count=8, length=5, vocab=11):
    rng = np.random.default_rng(seed)
    shape = (rows_count, length)
    weights = (rng.random(shape) < 0.6).astype(np.float32)
    weights[1] = 0.0  # a row of padding
    return {
        "inputs": jnp.asarray(rng.integers(vocab, size=shape), jnp.int32),
        "targets": jnp.asarray(rng.integers(vocab, size=shape), jnp.int32),
        "weights": jnp.asarray(weights),
        "segment_ids": jnp.zeros(shape, jnp.int32),
    }


def _setup(**changes):
    config = tiny.get_config()
    for name, value in changes.items():
        setattr(config, name, value)
    model = fakes.TwoMatrices()
    optimizer = optimizer_lib.make(config.optimizer)
    state = state_lib.make_init(model, optimizer, config.seed)()
    return state, jax.jit(step_lib.make_train_step(model, optimizer, config))


def test_loss_is_the_token_weighted_cross_entropy():
    state, train_step = _setup()
    batch = _batch(0)
    _, metrics = train_step(state, batch)
    logits, _ = fakes.TwoMatrices().apply(state.params, batch["inputs"])
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(
        log_p, np.asarray(batch["targets"])[..., None], -1
    )[..., 0]
    weights = np.asarray(batch["weights"])
    expected = -(chosen * weights).sum() / weights.sum()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["tokens"] == weights.sum()


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_equals_the_full_batch(parts):
    # Rows hold between 0 and 5 tokens: a mean of means would be off by far.
    batch = _batch(1)
    state, whole = _setup()
    _, accumulated = _setup(accumulation=parts)
    for _ in range(3):
        expected, expected_metrics = whole(state, batch)
        got, metrics = accumulated(state, batch)
        for name in ("loss", "grad_norm", "tokens"):
            np.testing.assert_allclose(
                metrics[name], expected_metrics[name], rtol=2e-6
            )
        # Adam divides by the root of a square: compare moments and updates.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
            got,
            expected,
        )
        state = expected


def test_split_leaves_each_device_its_own_rows():
    rows_of = jnp.arange(8)[:, None]
    parts = step_lib.split({"x": rows_of}, 2)["x"][..., 0]
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_schedule():
    config = optimizer_lib.OptimizerConfig(
        learning_rate=2.0, warmup_steps=4, final_fraction=0.1
    )
    rates = [
        float(optimizer_lib.learning_rate(config, s, 21)) for s in range(21)
    ]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates[4], 2.0)
    middle = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    np.testing.assert_allclose(rates[12], middle, rtol=1e-6)
    np.testing.assert_allclose(rates[20], 0.2, rtol=1e-6)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_first_update_is_clipped_adamw():
    config = tiny.get_config().optimizer
    config.clip_norm = 1e-3
    state, train_step = _setup(optimizer=config)
    batch = _batch(2)
    new, metrics = train_step(state, batch)

    def loss(params):
        logits, _ = fakes.TwoMatrices().apply(params, batch["inputs"])
        total = step_lib.cross_entropy_sum(
            logits, batch["targets"], batch["weights"]
        )
        return total / batch["weights"].sum()

    grads = jax.grad(loss)(state.params)
    norm = optax.tree.norm(grads)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert norm > 1e-3
    # The first step of Adam is the sign, up to eps; both leaves decay.
    rate = config.learning_rate / config.warmup_steps

    def expected(param, grad):
        grad = grad * 1e-3 / norm
        adam = grad / (jnp.abs(grad) + config.eps)
        return param - rate * (adam + config.weight_decay * param)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        new.params,
        jax.tree.map(expected, state.params, grads),
    )


def test_an_update_that_is_not_finite_is_left_out(tmp_path):
    state, train_step = _setup()
    state, _ = train_step(state, _batch(3))
    poisoned = _batch(4)
    poisoned["weights"] = poisoned["weights"].at[0, 0].set(jnp.inf)
    new, metrics = train_step(state, poisoned)
    assert not metrics["finite"]
    assert (new.step, new.skipped) == (2, 1)
    for old_part, new_part in (
        (state.params, new.params),
        (state.opt_state, new.opt_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, old_part, new_part)
    row, finite = rows.fetch(2, metrics)
    assert not finite
    store = checkpoints.CheckpointStore(tmp_path, keep=1, read_only=True)
    told = rows.left_out(row, 1, "skip", 100, store)
    assert told.startswith("step 2: update skipped, ")
    with pytest.raises(rows.NonFiniteError) as error:
        rows.left_out(row, 1, "stop", 100, store)
    for part in ("step 2: ", "loss = ", "No checkpoint was", "nonfinite=skip"):
        assert part in str(error.value)
    # So many in succession, or half of a short run, end it also under "skip".
    for count, steps in ((10, 100), (2, 4), (1, 1)):
        rows.left_out(row, count - 1, "skip", steps, store)
        with pytest.raises(rows.NonFiniteError, match="learns nothing more"):
            rows.left_out(row, count, "skip", steps, store)
    # The next good batch goes on from there.
    after, metrics = train_step(new, _batch(5))
    assert metrics["finite"]
    assert (after.step, after.skipped) == (3, 1)


def test_an_update_that_overflows_is_told(tmp_path):
    store = checkpoints.CheckpointStore(tmp_path, keep=1, read_only=True)
    row = {"step": 3, "loss": 1.0, "grad_norm": 1e30}
    assert rows.left_out(row, 1, "skip", 100, store) == (
        "step 3: update skipped, the update overflows parameters or moments"
    )


def test_a_batch_without_tokens():
    state, train_step = _setup()
    batch = _batch(6)
    batch["weights"] = jnp.zeros_like(batch["weights"])
    _, metrics = train_step(state, batch)
    assert metrics["finite"]
    assert metrics["loss"] == metrics["grad_norm"] == metrics["tokens"] == 0


def test_unweighted_tokens_may_have_any_logits():
    logits = jnp.zeros((1, 2, 3)).at[0, 1].set(jnp.nan)
    weights = jnp.array([[1.0, 0.0]])
    total = step_lib.cross_entropy_sum(
        logits, jnp.zeros((1, 2), jnp.int32), weights
    )
    np.testing.assert_allclose(total, math.log(3), rtol=1e-6)


def test_rows_survive_json():
    row = {"step": 3, "loss": math.nan, "grad_norm": math.inf, "tokens": 5}
    back = rows.decode(rows.encode(row))
    assert math.isnan(back.pop("loss"))
    assert back == {"step": 3, "grad_norm": math.inf, "tokens": 5}
    assert rows.encode(None) is rows.decode(None) is None
