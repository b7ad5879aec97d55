"""Launches and temporary memory of operators, compiled for an H200."""

import jax
import jax.numpy as jnp
import pytest

from tests.kernels.compiled import budgets
from tests.kernels.compiled import h200


def gradient(run, inputs):
    """A function of inputs and cotangents: all results and all gradients."""
    varied = [
        i for i, s in enumerate(inputs) if jnp.issubdtype(s.dtype, jnp.floating)
    ]

    def both(inputs, bars):
        def chosen(*some):
            full = list(inputs)
            for i, value in zip(varied, some, strict=True):
                full[i] = value
            return run(*full)

        y, back = jax.vjp(chosen, *(inputs[i] for i in varied))
        return y, back(bars)

    return both


@pytest.mark.parametrize("budget", budgets.BUDGETS, ids=lambda b: b.name)
def test_budget(budget):
    forward = h200.cost(h200.compile_for(budget.run, *budget.inputs))
    # Cotangents of both results are arguments, so nothing is spent on them.
    with jax.sharding.use_abstract_mesh(h200.abstract_mesh()):
        bars = jax.eval_shape(lambda *a: budget.run(*a), *budget.inputs)
    run = gradient(budget.run, budget.inputs)
    backward = h200.cost(h200.compile_for(run, budget.inputs, bars))
    found = (forward.kernels, backward.kernels)
    assert found == budget.kernels, f"Triton launches: {found}"
    found = (forward.launches, backward.launches)
    assert all(f <= b for f, b in zip(found, budget.launches, strict=True)), (
        f"launches: {found}, at most {budget.launches}"
    )
    ratio = backward.temporary / (backward.arguments + backward.outputs)
    assert ratio <= budget.temporary, f"temporary bytes: {ratio:.3f}"
    print(f"{budget.name}: {forward}, {backward}, {ratio:.4f}")


def test_launches_are_counted():
    """What is inside of a fusion is one; what a loop repeats counts once."""

    def run(x):
        y = jnp.sum(jnp.exp(x) * x, axis=1)
        return jax.lax.fori_loop(0, 5, lambda _, y: y * y + 1, y)

    text = h200.compile_for(
        run, jax.ShapeDtypeStruct((512, 512), jnp.float32)
    ).as_text()
    kernels, launches = h200.count(text)
    assert kernels == 0 and 2 <= launches <= 6, text
