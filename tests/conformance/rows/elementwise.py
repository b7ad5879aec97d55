"""Elementwise recurrences."""

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import elementwise


def recurrence_inputs(rng, B, T, D=6):
    return {
        "x": common.f32(rng.normal(size=(B, T, D))),
        "log_decay": common.f32(-np.exp(rng.normal(size=(B, T, D)) - 2)),
    }


def one_decay_for_all_tokens(rng, B, T):
    inputs = recurrence_inputs(rng, B, T)
    return inputs | {"log_decay": inputs["log_decay"][:, :1]}


RECURRENCE_FAULTS = {
    "one decay too few": (
        lambda i: i | {"log_decay": i["log_decay"][..., :5]},
        "log_decay",
        "5, 5",
    ),
}

LINEAR_RECURRENCE = spec.Operator(
    name="linear_recurrence",
    function="linear_recurrence",
    make_inputs=recurrence_inputs,
    oracle=elementwise.linear_recurrence,
    make_state=common.head_state(6),
    output_like="x",
    lengths=(1, 2, 63, 65, 130, 257),
    replicated=one_decay_for_all_tokens,
    hard=common.hard_gates,
    golden=(
        spec.Golden(
            "hgrn",
            {"x": "x", "g": "log_decay"},
            variant=lambda operator, inputs, opts: operator,
            prepare=lambda inputs, opts: (inputs, lambda grads: grads),
        ),
    ),
    faults=RECURRENCE_FAULTS,
)


def c64(x, y):
    return np.asarray(x + 1j * y, np.complex64)


def complex_inputs(rng, B, T, D=(2, 3)):
    """Trailing axes of more than one; phases all around the circle."""

    def normal():
        return rng.normal(size=(B, T, *D))

    return {
        "x": c64(normal(), normal()),
        "log_decay": c64(-np.exp(normal() - 2), 2 * normal()),
    }


def complex_state(rng, B):
    return c64(rng.normal(size=(B, 2, 3)), rng.normal(size=(B, 2, 3)))


def hard_complex_gates(rng, inputs):
    gates = inputs["log_decay"]
    real = common.hard_gates(rng, {"log_decay": gates.real})["gates"]
    hard = c64(0.0, gates.imag)
    hard.real = real["log_decay"]  # -inf + 1j * y would be NaN
    return {"gates": inputs | {"log_decay": hard}}


COMPLEX_RECURRENCE = spec.Operator(
    name="linear_recurrence_complex",
    function="linear_recurrence",
    make_inputs=complex_inputs,
    oracle=elementwise.linear_recurrence,
    make_state=complex_state,
    output_like="x",
    complex_inputs=True,
    lengths=(1, 65, 130),
    chunk_sizes=(16, 64),
    table_lengths=(),
    hard=hard_complex_gates,
)
