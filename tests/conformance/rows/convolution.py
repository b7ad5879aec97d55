"""Short convolution."""

import dataclasses
import functools

import numpy as np

from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import convolution


def convolution_inputs(rng, B, T, D=6, W=4):
    return {
        "x": common.f32(rng.normal(size=(B, T, D))),
        "weight": common.f32(rng.normal(size=(W, D))),
        "bias": common.f32(rng.normal(size=D)),
    }


def convolution_golden(inputs, opts):
    bias = inputs.get("bias", np.zeros(inputs["x"].shape[-1]))
    ready = inputs | {"weight": inputs["weight"].T, "bias": bias}
    return ready, lambda grads: grads | {"weight": grads["weight"].T}


@functools.cache
def with_activation(operator, activation, width):
    del width  # part of the cache key: another width is another program
    activation = None if activation == "none" else activation
    return dataclasses.replace(
        operator,
        options={"activation": activation},
        oracle=functools.partial(
            convolution.short_convolution, activation=activation
        ),
    )


def convolution_variant(operator, inputs, opts):
    width = inputs["weight"].shape[1]
    return with_activation(operator, str(opts["activation"]), width)


CONVOLUTION = spec.Operator(
    name="short_convolution",
    function="short_convolution",
    options={"activation": "silu"},
    make_inputs=convolution_inputs,
    oracle=functools.partial(convolution.short_convolution, activation="silu"),
    make_state=common.head_state(3, 6),
    parameters=("weight", "bias"),
    output_like="x",
    forms=(),
    exchanges=(None,),
    golden=(
        spec.Golden(
            "short_conv",
            {n: n for n in ("x", "weight", "bias")},
            output="y",
            initial=("state0",),
            final=("statet",),
            variant=convolution_variant,
            prepare=convolution_golden,
        ),
    ),
    faults={
        "weight of another width": (
            lambda i: i | {"weight": i["weight"][:, :5]},
            "weight",
            "4, 5",
        ),
        "weight transposed": (
            lambda i: i | {"weight": i["weight"].T},
            "weight",
            "6, 4",
        ),
        "bias of another width": (
            lambda i: i | {"bias": i["bias"][:5]},
            "bias",
            "5",
        ),
    },
)
