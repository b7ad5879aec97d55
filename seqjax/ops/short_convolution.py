"""Short causal depthwise convolution.

    y_t = activation(bias + sum_w weight_w x_{t-W+1+w}),   w = 0 .. W-1

the last tap meeting the current token.  Its state is the last W-1 inputs, its
cost O(T W D).  Nearly every recent linear mixer puts one (W = 4) in front of
q, k and v; alone it sees W tokens.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.parallel import halo
from seqjax_kernels import launch
from seqjax_kernels.pointwise import convolution

_OP = "short_convolution"
_ACTIVATIONS = {None: lambda x: x, "silu": jax.nn.silu}
# Taps of the kernels are unrolled, those of backward squared.
_MOST_TAPS = 8


def short_convolution(
    x: jax.Array,
    weight: jax.Array,
    *,
    bias: jax.Array | None = None,
    activation: str | None = None,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation: str | Sequence[str] | None = None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Causal depthwise convolution that stays inside each document.

    Args:
      x: [B, T, D] float16, bfloat16, float32 or (all inputs) float64.
      weight: [W, D], W >= 1; weight[-1] meets the current token.
      bias: [D], default none.
      activation: "silu" or None.
      initial_state: [B, W-1, D], the inputs before x, oldest first; default
        zeros.  It belongs to the first document of each row.
      segment_ids: int32 [B, T], non-decreasing over real tokens; padding (-1)
        is skipped by the window, its output is 0.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`,
        W-1 or more tokens a device.  Without segment_ids the W-1 tokens in
        front of a shard come by one `ppermute`; with them padding may empty
        whole shards, and the last W-1 real tokens of all come by one
        all-gather.
      exchange: must be None, there is no choice.
      form: must be None, the operator has one form.
      chunk_size: must be None.
      implementation: "triton" (NVIDIA GPUs, no float64, at most 8 taps;
        differentiable once), "xla", a list of names, or None for the first of
        these that can run.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, D] in the dtype of x, state [B, W-1, D]: the last W-1 real
      inputs of the last document, zeros in front of its first).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    for name, value in (("form", form), ("chunk_size", chunk_size)):
        if value is not None:
            raise ValueError(
                f"{_OP}: {name} must be None, got {value!r}: the operator has"
                " one form"
            )
    shapes = _contract.Shapes(_OP)
    shapes.bind("x", x, "B T D")
    shapes.bind("weight", weight, "W D")
    if shapes["W"] < 1:
        raise ValueError(f"{_OP}: weight must have W >= 1 taps, got W = 0")
    if bias is not None:
        shapes.bind("bias", bias, "D")
    window = shapes["W"] - 1
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, f"B {window} D")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    _contract.check_axis(_OP, axis_name, exchange)
    if exchange is not None:
        raise ValueError(
            f"{_OP}: exchange must be None, got {exchange!r}: a window of W-1"
            " tokens moves in one way"
        )
    if axis_name is not None and shapes["T"] < window:
        raise ValueError(
            f"{_OP}: x has T/P = {shapes['T']} tokens on each of the"
            f" {jax.lax.axis_size(axis_name)} devices along"
            f" axis_name={axis_name!r}, and weight has W = {shapes['W']} taps:"
            f" at least W-1 = {window} tokens are needed; use fewer devices or"
            " longer sequences"
        )
    if activation not in (None, "silu"):
        raise ValueError(
            f"{_OP}: activation must be 'silu' or None, got {activation!r}"
        )
    dtype = _contract.accumulation_dtype(
        _OP, x=x, weight=weight, bias=bias, initial_state=initial_state
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    if initial_state is None:
        initial_state = jnp.zeros((shapes["B"], window, shapes["D"]), dtype)
    inputs = _contract.align_inputs(
        dict(
            x=x,
            weight=weight,
            bias=bias,
            initial=initial_state.astype(dtype),
            segment_ids=segment_ids,
        ),
        axis_name,
    )
    run = _dispatch.choose(_OP, implementation, **inputs)
    run = functools.partial(run, activation=activation, dtype=dtype)
    if axis_name is None:
        y, state = run(**inputs)
    else:
        y, state = _shard(run, dtype, axis_name, **inputs)
    return y.astype(x.dtype), state.astype(state_dtype)


def run_xla(
    x,
    weight,
    bias,
    initial,
    segment_ids,
    *,
    activation,
    dtype,
    initial_ids=None,
):
    """The convolution in plain JAX; the reference of any kernel.

    `initial_ids` [B, W-1] are the ids of the initial state, -2 (the default)
    for "the first document of the row".
    """
    x = recurrence.mask_padding(segment_ids, x).astype(dtype)
    weight = weight.astype(dtype)
    taps, length = weight.shape[0], x.shape[1]
    if segment_ids is None or length == 0:
        inputs = jnp.concatenate([initial, x], axis=1)
        y = sum(
            weight[w][None, None] * inputs[:, w : w + length]
            for w in range(taps)
        )
        state = inputs[:, length:]
    else:
        y, state = _packed(x, weight, initial, segment_ids, initial_ids)
    if bias is not None:
        y = y + bias.astype(dtype)[None, None]
    y = _ACTIVATIONS[activation](y)
    return recurrence.mask_padding(segment_ids, y), state


def run_triton(
    x,
    weight,
    bias,
    initial,
    segment_ids,
    *,
    activation,
    dtype,
    initial_ids=None,
):
    """The same as a GPU kernel, which reads x as it is and skips padding."""
    del dtype  # float32
    plan = None
    if segment_ids is not None:
        taps = weight.shape[0]
        plan = convolution.make_plan(segment_ids, taps, initial_ids)
    return convolution.short_convolution(
        x, weight, bias, initial, plan, activation=activation
    )


def _triton_refuses(platform, x, weight, bias, initial, segment_ids):
    if initial.dtype == jnp.float64:
        return "takes no float64"
    if weight.shape[0] > _MOST_TAPS:
        return f"takes at most {_MOST_TAPS} taps, got {weight.shape[0]}"
    if x.size == 0:
        return "takes no empty x"
    return launch.why_not()


_dispatch.IMPLEMENTATIONS[_OP] = {
    "triton": _dispatch.Implementation(run_triton, _triton_refuses),
    "xla": _dispatch.Implementation(run_xla),
}


def _packed(x, weight, initial, segment_ids, initial_ids):
    """The convolution over documents, with padding anywhere."""
    taps, length = weight.shape[0], x.shape[1]
    real = segment_ids != recurrence.PADDING
    # Padding in front of a real token would stand inside windows.  Moving the
    # real tokens together costs two gathers, so only where there is any.
    scattered = jnp.any(~real[:, :-1] & real[:, 1:])
    order = jnp.argsort(~real, axis=1, stable=True)
    x, ids = jax.lax.cond(
        scattered, _take, lambda values, order: values, (x, segment_ids), order
    )
    inputs = jnp.concatenate([initial, x], axis=1)
    if initial_ids is None:
        initial_ids = jnp.full_like(ids[:, :1], halo.INITIAL)
        initial_ids = jnp.broadcast_to(initial_ids, initial.shape[:2])
    # After the sort the first real token stands first.
    initial_ids = jnp.where(
        initial_ids == halo.INITIAL, ids[:, :1], initial_ids
    )
    all_ids = jnp.concatenate([initial_ids, ids], axis=1)
    y = jnp.zeros_like(x)
    for w in range(taps):
        same = all_ids[:, w : w + length] == ids
        seen = jnp.where(same[..., None], inputs[:, w : w + length], 0)
        y = y + weight[w][None, None] * seen
    y = jax.lax.cond(
        scattered,
        lambda y, order: _take(y, jnp.argsort(order, axis=1)),
        lambda y, order: y,
        y,
        order,
    )
    if taps == 1:
        return y, initial
    # The window after the last real token, cut at its document's start.
    count = jnp.sum(real, axis=1)
    end = count[:, None] + jnp.arange(taps - 1)[None]
    state, state_ids = _take((inputs, all_ids), end)
    last_id = jnp.take_along_axis(all_ids, count[:, None] + (taps - 2), axis=1)
    return y, jnp.where((state_ids == last_id)[..., None], state, 0)


def _take(tree, order):
    """Gathers entries [B, T, ...] along time."""
    return jax.tree.map(
        lambda a: jnp.take_along_axis(
            a, order.reshape(order.shape + (1,) * (a.ndim - 2)), axis=1
        ),
        tree,
    )


def _shard(run, dtype, axis_name, *, x, weight, bias, initial, segment_ids):
    """This device's shard, and the state behind the whole sequence."""
    size = weight.shape[0] - 1
    window, window_ids = initial, None
    real = recurrence.mask_padding(segment_ids, x).astype(dtype)
    if size > 0 and segment_ids is None:
        window = halo.fetch(real, size, None, axis_name)
        # One device alone receives nothing.
        window = jnp.pad(window, ((0, 0), (size - window.shape[1], 0), (0, 0)))
        first = jax.lax.axis_index(axis_name) == 0
        window = jnp.where(first, initial, window)
    elif size > 0:
        # The filler counts as padding: it stays only where tokens are too few.
        filler = ((0, 0), (size, 0))
        tail, tail_ids = halo.last_real(
            jnp.pad(real, (*filler, (0, 0))),
            jnp.pad(segment_ids, filler, constant_values=recurrence.PADDING),
            size,
        )
        window, window_ids = halo.incoming_window(
            tail, tail_ids, initial, axis_name
        )
    y, state = run(
        x,
        weight,
        bias,
        window,
        segment_ids,
        initial_ids=window_ids,
    )
    return y, recurrence.last_device(state, axis_name)
