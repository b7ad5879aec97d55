"""Causal short convolution with its activation, forward and backward.

    y_t = act(bias + sum_j weight[W-1-j] u[t-j]),   u = initial state ++ x

One launch forward; backward keeps only the inputs and makes the sums again,
W (W+1) loads a cell of which all but three are of cached lines.  Packed
documents take two launches more, for tables of 8 W + 12 bytes a token.  Weak
where x has few channels: a program makes whole tiles of 16 or more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seqjax_kernels import batching
from seqjax_kernels import launch
from seqjax_kernels.pointwise import configs

PADDING = -1  # id of a token that is none
INITIAL = -2  # id of what stands in front of the first document
ACTIVATIONS = (None, "silu")


class Plan(NamedTuple):
    """Where the taps of packed documents look, as times; see the kernels.

    Attributes:
      sources: int32 [B, T, W], of tap j of each token; less than -(W-1) for
        nothing, as all of padding are.
      targets: int32 [B, W-1+T, W+1], for each place of u the token whose tap j
        looks at it, -1 for none, and last its place in the final state.
      last: int32 [B, W-1], places of the final state.
    """

    sources: jax.Array
    targets: jax.Array
    last: jax.Array


class _Static(NamedTuple):
    activation: str | None
    launcher: str | None


def short_convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    initial: jax.Array | None = None,
    plan: Plan | None = None,
    *,
    activation: str | None = None,
    launcher: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the convolution; differentiable once, in reverse.

    Args:
      x: [B, T, D] float16, bfloat16 or float32.
      weight: [W, D], weight[-1] meets the current token.
      bias: [D] or None.
      initial: [B, W-1, D], what stands in front of x; None for zeros.
      plan: of packed documents, by `make_plan`.
      activation: "silu" or None.
      launcher: as in `launch.call`.

    Returns:
      (y [B, T, D] in the dtype of x, 0 at padding; the last W-1 inputs
      [B, W-1, D] in float32).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {ACTIVATIONS}, got {activation!r}"
        )
    static = _Static(activation, launcher)
    return _convolve(static, x, weight, bias, initial, plan)


def make_plan(
    segment_ids: jax.Array,
    taps: int,
    initial_ids: jax.Array | None = None,
    *,
    launcher: str | None = None,
) -> Plan:
    """Where taps look among documents, with padding anywhere.

    Args:
      segment_ids: int32 [B, T], -1 marks padding.
      taps: W.
      initial_ids: int32 [B, W-1], ids of the initial state's entries, -2 for
        "the first document of the row", which None is for all.
      launcher: as in `launch.call`.

    Returns:
      The plan.
    """

    def run(segment_ids, initial_ids):
        from seqjax_kernels.pointwise import plan_kernels

        batch, length = segment_ids.shape
        tokens, block = configs.plan(length, taps)

        def of(*shape):
            return jax.ShapeDtypeStruct((batch, *shape), jnp.int32)

        order, ranks, counts = launch.call(
            plan_kernels.order_kernel,
            segment_ids,
            outputs=[of(length), of(length), of()],
            grid=(batch * -(-length // tokens), 1, 1),
            constants=dict(T=length, BT=tokens),
            num_warps=8,
            launcher=launcher,
        )
        places = length + taps - 1
        return launch.call(
            plan_kernels.plan_kernel,
            segment_ids,
            initial_ids,
            order,
            ranks,
            counts,
            outputs=[of(length, taps), of(places, taps + 1), of(taps)],
            grid=(batch * -(-places // block), 1, 1),
            constants=dict(
                T=length,
                W=taps,
                BT=block,
                BW=configs.power_of_two(taps + 1),
            ),
            launcher=launcher,
        )

    if taps == 1:
        initial_ids = None
    made = batching.fold(run, (True, True))(segment_ids, initial_ids)
    sources, targets, last = made
    return Plan(sources, targets, last[:, :-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(static, x, weight, bias, initial, plan):
    return _forward(static, x, weight, bias, initial, plan)[0]


def _forward(static, x, weight, bias, initial, plan):
    taps = weight.shape[0]
    config = configs.convolution(x.shape[1], x.shape[2], x.dtype)

    def run(x, weight, bias, initial, sources):
        batch, length, width = x.shape
        from seqjax_kernels.pointwise import convolution_kernels

        return launch.call(
            convolution_kernels.forward_kernel,
            x,
            weight,
            bias,
            initial,
            sources,
            outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
            grid=(
                batch * -(-length // config.rows),
                -(-width // config.columns),
                1,
            ),
            constants=dict(
                T=length,
                D=width,
                W=taps,
                SILU=static.activation == "silu",
                BT=config.rows,
                BD=config.columns,
            ),
            num_warps=config.num_warps,
            launcher=static.launcher,
        )

    sources = None if plan is None else plan.sources
    folded = batching.fold(run, (True, False, False, True, True))
    (y,) = folded(x, weight, bias, initial, sources)
    state = _last(x, initial, plan, taps)
    return (y, state), (x, weight, bias, initial, plan)


def _backward(static, kept, bars):
    x, weight, bias, initial, plan = kept
    y_bar, state_bar = bars
    taps = weight.shape[0]
    config = configs.convolution(x.shape[1], x.shape[2], x.dtype, backward=True)
    sources, targets = (None, None) if plan is None else plan[:2]
    constants = dict(
        W=taps, SILU=static.activation == "silu", BD=config.columns
    )

    def run(x, weight, bias, initial, sources, targets, y_bar, state_bar):
        from seqjax_kernels.pointwise import convolution_kernels

        batch, length, width = x.shape
        columns = -(-width // config.columns)
        runs = -(-length // (config.rows * config.tiles))
        inputs = (x, weight, bias, initial, sources, targets, y_bar, state_bar)
        made = launch.call(
            convolution_kernels.backward_kernel,
            *inputs,
            outputs=[
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                jax.ShapeDtypeStruct(
                    (batch, runs, taps + 1, width), jnp.float32
                ),
            ],
            grid=(batch * runs, columns, 1),
            constants=constants
            | dict(
                T=length,
                D=width,
                BT=config.rows,
                BW=configs.power_of_two(taps + 1),
                TILES=config.tiles,
            ),
            num_warps=config.num_warps,
            launcher=static.launcher,
        )
        if initial is None or taps == 1:
            return made
        (initial_bar,) = launch.call(
            convolution_kernels.initial_kernel,
            *inputs,
            outputs=[jax.ShapeDtypeStruct(initial.shape, jnp.float32)],
            grid=(batch, columns, 1),
            constants=constants
            | dict(T=length, D=width, BW=configs.power_of_two(taps - 1)),
            num_warps=config.num_warps,
            launcher=static.launcher,
        )
        return *made, initial_bar

    leads = (True, False, False, True, True, True, True, True)
    made = batching.fold(run, leads)(
        x,
        weight,
        bias,
        initial,
        sources,
        targets,
        y_bar,
        state_bar if taps > 1 else None,
    )
    x_bar, sums_bar = made[:2]
    weight_bar = jnp.sum(sums_bar[:, :, :-1], (0, 1)).astype(weight.dtype)
    bias_bar = None
    if bias is not None:
        bias_bar = jnp.sum(sums_bar[:, :, -1], (0, 1)).astype(bias.dtype)
    if initial is None:
        initial_bar = None
    elif taps == 1:
        initial_bar = jnp.zeros_like(initial)
    else:
        initial_bar = made[2].astype(initial.dtype)
    return x_bar, weight_bar, bias_bar, initial_bar, None


_convolve.defvjp(_forward, _backward)


def _last(x, initial, plan, taps):
    """The final state, W-1 rows of u."""
    batch, length, width = x.shape
    window = taps - 1
    if initial is None:
        initial = jnp.zeros((batch, window, width), jnp.float32)
    initial = initial.astype(jnp.float32)
    if plan is None:
        tail = x[:, max(length - window, 0) :].astype(jnp.float32)
        return jnp.concatenate([initial, tail], axis=1)[:, tail.shape[1] :]
    place = plan.last[:, :, None]
    new = jnp.take_along_axis(x, jnp.maximum(place, 0), axis=1)
    old = jnp.take_along_axis(initial, jnp.maximum(place + window, 0), axis=1)
    kept = jnp.where(place >= 0, new.astype(jnp.float32), old)
    return jnp.where(place >= -window, kept, 0)
