"""What the suite cannot ask of the selective scan: its memory, its gate."""

import json

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from tests.conformance import golden
from tests.conformance import spec

T, D, N = 512, 24, 8


def _sizes(jaxpr):
    """Sizes of all intermediate arrays, those inside of loops too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _sizes(inner)


def test_no_array_holds_the_states_of_all_tokens():
    tokens = jax.ShapeDtypeStruct((1, T, D), jnp.float32)
    shared = jax.ShapeDtypeStruct((1, T, 1, N), jnp.float32)
    A = jax.ShapeDtypeStruct((D, N), jnp.float32)

    def gradients(x, dt, A, B, C, y_bar):
        y, pull = jax.vjp(
            lambda *inputs: ops.selective_scan(*inputs)[0], x, dt, A, B, C
        )
        return y, pull(y_bar)

    jaxpr = jax.make_jaxpr(gradients)(tokens, tokens, A, shared, shared, tokens)
    # 32 states inside a chunk, 16 between chunks, one number a token
    assert max(_sizes(jaxpr.jaxpr)) <= max(32 * D * N, T * D)


@pytest.mark.parametrize("case", ["t63", "t130"])
def test_golden_with_an_output_gate(case):
    """y = (C h + D x) silu(z), as Mamba's layer has it."""
    index = json.loads((golden.FOLDER / "ops.json").read_text())
    notes = index["ops"]["mamba1_scan"]["cases"]
    allowed = next(n for n in notes if n["case"] == case)["float32_error"]
    with np.load(golden.FOLDER / "mamba1_scan.npz") as arrays:
        parts = {
            name.removeprefix(f"{case}/"): arrays[name]
            for name in arrays.files
            if name.startswith(f"{case}/")
        }
    inputs = {
        name.removeprefix("in/"): x
        for name, x in parts.items()
        if name.startswith("in/")
    }
    assert parts["opt/delta_softplus"] == 1

    @jax.jit
    def call(inputs):
        y, state = ops.selective_scan(
            inputs["u"],
            jax.nn.softplus(inputs["delta"] + inputs["delta_bias"][None, None]),
            inputs["A"],
            inputs["B"],
            inputs["C"],
            D=inputs["D"],
            initial_state=inputs.get("h0"),
        )
        return {"y": y * jax.nn.silu(inputs["z"]), "ht": state}

    out, pull = jax.vjp(call, inputs)
    grads = pull({name: parts[f"ct/{name}"] for name in out})[0]
    got = {f"out/{n}": x for n, x in out.items()}
    got |= {f"grad/{n}": x for n, x in grads.items()}
    for name, x in got.items():
        bound = max(1e-5, 10 * allowed[name])
        assert spec.error(x, parts[name]) <= bound, name
