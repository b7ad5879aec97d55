"""An operator on one shard of the sequence a device, compiled but not run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import _cases

P = jax.sharding.PartitionSpec
AXIS = "seq"
WINDOW = 128
# What is computed of a call: y; its gradients; an initial state too, with its
# gradient; the final state too, with its cotangent.
USES = ("forward", "both", "initial", "final")
# Layouts and collectives are the same; only the machine code is worse.
QUICK = {"xla_backend_optimization_level": 0}


class Shape(NamedTuple):
    """An abstract call.

    Attributes:
      sizes: those of the whole sequence.
      devices: P.
      method: the operator's `exchange`, "window" for attention with one,
        "halo" for what moves nothing else.
      use: one of USES.
    """

    sizes: _cases.Sizes
    devices: int
    method: str
    use: str


def mesh(devices: int) -> jax.sharding.Mesh:
    """The first P devices along one axis."""
    return jax.make_mesh(
        (devices,),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def methods(name: str) -> tuple[str, ...]:
    """What an operator of the case table can be asked to exchange by."""
    if name == "softmax_attention":
        return ("all_gather", "ring", "window")
    if name == "short_convolution":
        return ("halo",)
    return ("all_gather", "prefix_scan", "ring")


def _options(method: str) -> dict[str, Any]:
    if method == "window":
        return {"window": WINDOW}
    return {} if method == "halo" else {"exchange": method}


def inputs(name: str, sizes: _cases.Sizes) -> tuple[Any, ...]:
    """Shapes of a case's inputs, float32, of the whole sequence."""
    case = _cases.CASES[name]
    return jax.eval_shape(
        lambda key: case.inputs(key, sizes, jnp.float32), jax.random.key(0)
    )


def is_timed(x: Any, sizes: _cases.Sizes) -> bool:
    """Whether an input has one row (or several) a token."""
    return x.ndim > 1 and x.shape[1] % sizes.length == 0


def state(name: str, sizes: _cases.Sizes) -> Any:
    """Shapes of the operator's state."""
    given = inputs(name, sizes)
    return jax.eval_shape(lambda *x: _cases.CASES[name].run(*x)[1], *given)


def call(name: str, shape: Shape) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function on whole arrays, and the shapes of its arguments.

    Inputs without time, such as Mamba's A, count as constants: their gradients
    are summed over the devices with those of all other parameters.
    """
    case, sizes = _cases.CASES[name], shape.sizes
    given = inputs(name, sizes)
    timed = [is_timed(x, sizes) for x in given]
    specs = tuple(P(None, AXIS) if t else P() for t in timed)
    initial = state(name, sizes) if shape.use == "initial" else None
    final = shape.use == "final"

    def local(given, initial):
        y, last = case.run(
            *given,
            initial_state=initial,
            axis_name=AXIS,
            **_options(shape.method),
        )
        return (y, last) if final else (y,)

    over = mesh(shape.devices)
    where = (P(None, AXIS), P())[: 2 if final else 1]
    whole = jax.shard_map(
        local, mesh=over, in_specs=(specs, P()), out_specs=where
    )

    def forward(given, initial):
        return whole(given, initial)

    def both(given, initial, cotangents):
        moving = [x for x, t in zip(given, timed, strict=True) if t]

        def of_moving(moving, initial):
            rest = iter(moving)
            joined = [
                next(rest) if t else x
                for x, t in zip(given, timed, strict=True)
            ]
            return whole(tuple(joined), initial)

        out, pull = jax.vjp(of_moving, moving, initial)
        return out, pull(cotangents)

    def place(spec):
        return lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.NamedSharding(over, spec)
        )

    arguments: tuple[Any, ...] = (
        tuple(place(spec)(x) for x, spec in zip(given, specs, strict=True)),
        jax.tree.map(place(P()), initial),
    )
    if shape.use == "forward":
        return forward, arguments
    out = jax.eval_shape(forward, *arguments)
    cotangents = tuple(
        jax.tree.map(place(spec), x) for x, spec in zip(out, where, strict=True)
    )
    return both, (*arguments, cotangents)


def compiled(name: str, shape: Shape, *, quick: bool = True) -> Any:
    """The compiled program of a call.

    Raises:
      NotImplementedError: the operator has no such exchange.
    """
    function, arguments = call(name, shape)
    options: Any = QUICK if quick and jax.default_backend() == "cpu" else None
    return jax.jit(function).lower(*arguments).compile(options)


def runnable(name: str, shape: Shape) -> Callable[[], Any]:
    """The compiled call on typical inputs, ready to be timed."""
    _, arguments = call(name, shape)
    program = compiled(name, shape, quick=False)
    case = _cases.CASES[name]
    given = case.inputs(jax.random.key(0), shape.sizes, jnp.float32)
    # The cotangents of y, and an initial state where there is one.
    values = (given, *jax.tree.map(jnp.ones_like, arguments[1:]))
    placed = jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), values, arguments
    )
    return lambda: program(*placed)
