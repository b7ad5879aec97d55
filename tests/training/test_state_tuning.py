"""Training the initial states of a frozen model, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import models
from seqjax.parallel import sharding
from seqjax.training import optimizer as optimizer_lib
from seqjax.training import state as state_lib
from seqjax.training import step as step_lib
from tests.training import tiny


def _batch():
    """The same pattern in every row, which a first state can know."""
    tokens = np.random.default_rng(0).integers(0, 11, 17)
    inputs = np.broadcast_to(tokens[:-1], (4, 16)).astype(np.int32)
    return {
        "inputs": jnp.asarray(inputs),
        "targets": jnp.asarray(np.broadcast_to(tokens[1:], (4, 16)), jnp.int32),
        "weights": jnp.ones((4, 16)),
        "segment_ids": jnp.zeros((4, 16), jnp.int32),
    }


def _config():
    config = tiny.get_config()
    config.model.vocab_size = 11
    config.model.pattern = ("gla", "s5", "attention")
    config.model.learned_initial_state = True
    config.optimizer.train_only = "initial_state"
    config.optimizer.learning_rate = 0.1
    config.steps = 60
    return config


def _noisy(config):
    """Random parameters, and initial states of zero."""
    noise = np.random.default_rng(1)

    def fill(path, leaf):
        if "initial_state" in sharding.path_name(path):
            return np.zeros(leaf.shape, np.float32)
        return 0.3 * noise.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(
        fill, models.abstract_parameters(config)
    )


def test_only_the_first_states_learn_and_the_loss_drops():
    config, batch = _config(), _batch()
    model = models.LanguageModel(config.model)
    optimizer = optimizer_lib.make(config.optimizer)
    # A model of some sort, since one that says nothing cannot be tuned.
    params = _noisy(config.model)
    state = jax.eval_shape(state_lib.make_init(model, optimizer, 0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    state = state._replace(params=params)
    train_step = jax.jit(step_lib.make_train_step(model, optimizer, config))
    first, losses = state, []
    for _ in range(config.steps):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3, losses[:: config.steps - 1]
    learned = 0
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(first.params),
        jax.tree.leaves(state.params),
        strict=True,
    ):
        if "initial_state" in sharding.path_name(path):
            # They start from nothing, and every one of them moves.
            assert not np.any(old) and np.any(new), path
            learned += 2 * old.size
        else:
            np.testing.assert_array_equal(old, new)
    # Two moments for each of them; the rest are counters.
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == learned > 0


def test_a_zero_state_changes_nothing_and_a_cache_starts_from_it():
    config = _config().model
    config.pattern = ("mlstm", "attention")
    model = models.LanguageModel(config)
    noise = np.random.default_rng(1)
    zero = _noisy(config)

    def start(leaf):
        return leaf if leaf.any() else noise.normal(size=leaf.shape)

    some = jax.tree.map(start, zero)
    tokens = _batch()["inputs"][:2, :7]
    apply = jax.jit(model.apply)

    def logits(params, cache, ids):
        return np.asarray(apply(params, tokens, cache, ids)[0])

    ids = np.array([[0] * 7, [1] * 3 + [2] * 4], np.int32)
    empty = model.init_cache(2, 9)
    without = models.LanguageModel(
        dataclasses.replace(config, learned_initial_state=False)
    )
    plain = jax.jit(without.apply)(drop(zero), tokens, empty, ids)[0]
    np.testing.assert_allclose(
        logits(zero, empty, ids), plain, rtol=2e-5, atol=2e-5
    )
    # The first document of a row starts from it, the next one from zero.
    moved = np.abs(logits(some, empty, ids) - plain).max(-1)
    assert (moved[0] > 1e-3).all() and (moved[1, :3] > 1e-3).all()
    np.testing.assert_allclose(moved[1, 3:], 0, atol=1e-5)
    np.testing.assert_allclose(
        logits(some, None, ids), logits(some, empty, ids), rtol=2e-5, atol=2e-5
    )


def drop(params):
    """Without the initial states."""
    if not isinstance(params, dict):
        return params
    return {n: drop(x) for n, x in params.items() if n != "initial_state"}


def test_a_pattern_that_matches_nothing_is_refused():
    config = tiny.get_config()
    config.optimizer.train_only = "initial_state"
    params = models.abstract_parameters(config.model)
    with pytest.raises(ValueError, match="matches no parameter; paths look"):
        optimizer_lib.check_trained(config.optimizer, params)
    config.optimizer.train_only = "("
    with pytest.raises(ValueError, match="train_only must be a regular expr"):
        config.optimizer.validate()
