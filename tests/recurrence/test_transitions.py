"""The algebra of affine maps: associativity, identity, reset, prefixes."""

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import recurrence

# kind: shapes of (log, zeros, state) for B=2, H=3, K=2, V=4
KINDS = {
    "identity": (None, (2,), (2, 3, 2, 4)),
    "scalar": ((2, 3), (2, 3), (2, 3, 2, 4)),
    "diagonal": ((2, 3, 2), (2, 3, 2), (2, 3, 2, 4)),
    "elementwise": ((2, 3, 2, 4), (2, 3, 2, 4), (2, 3, 2, 4)),
    "dense": ((2, 3, 2, 2), None, (2, 3, 2, 4)),
}
GATES = np.array([0.0, -1e-6, -0.3, -2.0, -20.0, -1e4], np.float64)


def draw_map(kind, seed, *, complex_log=False, lead=()):
    log, zeros, state = KINDS[kind]
    rng = np.random.default_rng(seed)
    if kind == "dense":
        return recurrence.Affine(
            recurrence.Dense(jnp.asarray(rng.normal(size=(*lead, *log)))),
            jnp.asarray(rng.normal(size=(*lead, *state))),
        )
    if log is not None:
        log = rng.choice(GATES, size=(*lead, *log))
        if complex_log:
            log = log + 1j * rng.normal(size=log.shape)
    update = rng.normal(size=(*lead, *state))
    if complex_log:
        update = update + 1j * rng.normal(size=update.shape)
    return recurrence.Affine(
        recurrence.Decay(
            None if log is None else jnp.asarray(log),
            jnp.asarray(rng.random((*lead, *zeros)) < 0.2, jnp.int32),
        ),
        jnp.asarray(update),
    )


def dense(affine):
    """(A, B) as plain numpy arrays, A as it acts on the columns of B."""
    b = np.asarray(affine.update)
    columns = []
    for i in range(b.shape[-2]):
        column = np.zeros_like(b)
        column[..., i, :] = 1
        columns.append(affine.transition.act(jnp.asarray(column)))
    # [..., K, V, K]: one matrix a column of the state
    return np.stack(columns, -1), b


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**20)
)
def test_composition_is_associative_and_means_one_after_the_other(kind, seed):
    with jax.enable_x64(True):
        complex_log = kind == "elementwise" and seed % 2 == 1
        first, second, third = (
            draw_map(kind, seed + i, complex_log=complex_log) for i in range(3)
        )
        left = recurrence.compose(third, recurrence.compose(second, first))
        right = recurrence.compose(recurrence.compose(third, second), first)
        chex.assert_trees_all_close(dense(left), dense(right), rtol=1e-12)
        (a1, b1), (a2, b2), (a3, b3) = map(dense, (first, second, third))
        a3, a2, a1 = (np.swapaxes(a, -2, -3) for a in (a3, a2, a1))
        act = lambda a, b: np.einsum("...vij,...jv->...iv", a, b)  # noqa: E731
        expected = (
            np.swapaxes(a3 @ a2 @ a1, -2, -3),
            act(a3, act(a2, b1) + b2) + b3,
        )
        chex.assert_trees_all_close(
            dense(left), expected, rtol=1e-12, atol=1e-300
        )


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**20)
)
def test_identity_is_neutral_on_both_sides(kind, seed):
    with jax.enable_x64(True):
        affine = draw_map(kind, seed)
        one = recurrence.identity_map(affine)
        for same in (
            recurrence.compose(affine, one),
            recurrence.compose(one, affine),
        ):
            chex.assert_trees_all_equal(same, affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_prefix_methods_agree_with_applying_maps_in_order(kind, reverse):
    with jax.enable_x64(True):
        maps = draw_map(kind, 7, lead=(5,))
        rng = np.random.default_rng(1)
        initial = jnp.asarray(rng.normal(size=(2, 3, 2, 4)))
        states, state = [None] * 5, initial
        leaves, structure = jax.tree.flatten(maps)
        for n in reversed(range(5)) if reverse else range(5):
            states[n] = state
            one = jax.tree.unflatten(structure, [x[n] for x in leaves])
            state = recurrence.apply(one, state)
        for method in ("sequential", "associative"):
            before, final = recurrence.exclusive_prefix(
                maps, initial, method=method, reverse=reverse
            )
            chex.assert_trees_all_close(before, jnp.stack(states), rtol=1e-12)
            chex.assert_trees_all_close(final, state, rtol=1e-12)


def test_prefix_refuses_an_unknown_method():
    maps = draw_map("scalar", 0, lead=(2,))
    with pytest.raises(ValueError, match="method must be one of sequential"):
        recurrence.exclusive_prefix(maps, maps.update[0], method="magic")


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets_the_state_exactly(kind):
    affine = draw_map(kind, 3)
    cut = recurrence.reset(affine, jnp.array([True, False]))
    state = jnp.full_like(affine.update, 1e30)
    after = recurrence.apply(cut, state)
    chex.assert_trees_all_equal(after[0], affine.update[0])
    chex.assert_trees_all_equal(after[1], recurrence.apply(affine, state)[1])


def test_gate_of_minus_infinity_is_a_zero_with_gradient_zero():
    gates = jnp.array([[-0.5, -jnp.inf]])
    state = jnp.full((1, 2, 1, 1), 3.0)

    def total(gates):
        return jnp.sum(recurrence.decay_of(gates).act(state))

    value, grad = jax.value_and_grad(total)(gates)
    chex.assert_trees_all_close(value, 3 * np.exp(-0.5), rtol=1e-6)
    chex.assert_trees_all_close(
        grad, jnp.array([[3 * np.exp(-0.5), 0.0]]), rtol=1e-6
    )
