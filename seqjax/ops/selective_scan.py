"""Selective scan: the recurrence of Mamba-1.

Gu and Dao, "Mamba" (arXiv 2312.00752):

    h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t          y_t = C_t h_t + D x_t

with a state of N numbers a channel, every one with its own decay.  Time O(D N)
a token, state D N floats.  Weak in that no matrix product composes its tokens:
the same work as multiply-adds of a chunked rule takes much longer, which is
what `ssd` was made for.
"""

import functools

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _elementwise
from seqjax.ops import _selective_chunk
from seqjax.parallel import elementwise

_OP = "selective_scan"
_RECURRENT_UP_TO = 4
_DEFAULT_CHUNK = 32


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
) -> tuple[jax.Array, jax.Array]:
    """Selective state space with a decay an element of the state (Mamba-1).

    Args:
      x: [B, T, D] float16, bfloat16, float32 or (all inputs) float64.
      dt: [B, T, D], step sizes > 0, already activated.
      A: [D, N], < 0.
      B: [B, T, G, N]; D a multiple of G, channel d uses group d // (D / G).
      C: [B, T, G, N].
      D: [D], skip connection, default none.
      initial_state: [B, D, N], default zeros.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`;
        the shard is walked twice.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode, and never
        holds the states of more than a chunk; the gradient of recurrent holds
        those of all tokens, parallel T x T decays an element.
      chunk_size: tokens a chunk, default 32; implies form="chunk".
      implementation: "xla", a list of names, or None for the best available.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, D] in the dtype of x, state [B, D, N]).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    shapes = _contract.Shapes(_OP)
    shapes.bind("x", x, "B T D")
    shapes.bind("dt", dt, "B T D")
    shapes.bind("A", A, "D N")
    shapes.bind("B", B, "B T G N")
    shapes.bind("C", C, "B T G N")
    shapes.divides("G", "D", "channels or groups")
    if D is not None:
        shapes.bind("D", D, "D")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B D N")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    dtype = _contract.accumulation_dtype(
        _OP, x=x, dt=dt, A=A, B=B, C=C, D=D, initial_state=initial_state
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    options = _contract.Options(
        segment_ids, axis_name, exchange, form, chunk_size, implementation
    )
    form, chunk_size = _contract.choose_form(
        _OP,
        options,
        length=shapes["T"],
        recurrent_up_to=_RECURRENT_UP_TO,
        default_chunk=_DEFAULT_CHUNK,
    )
    if initial_state is None:
        initial_state = jnp.zeros(
            (shapes["B"], shapes["D"], shapes["N"]), dtype
        )
    tokens = {
        name: recurrence.mask_padding(segment_ids, value).astype(dtype)
        for name, value in dict(x=x, dt=dt, B=B, C=C).items()
    }
    inputs = _contract.align_inputs(
        dict(
            **tokens,
            A=A.astype(dtype),
            segment_ids=segment_ids,
            initial=initial_state.astype(dtype),
        ),
        axis_name,
    )
    run = _dispatch.choose(_OP, implementation, form=form, **inputs)
    segment_ids, initial = inputs.pop("segment_ids"), inputs.pop("initial")
    starts = None
    if segment_ids is not None:
        starts = recurrence.segment_starts(segment_ids)
    local = functools.partial(
        run,
        **inputs,
        starts=starts,
        form=form,
        chunk_size=chunk_size,
        precision=_contract.precision(x, B, C),
    )
    if axis_name is None:
        y, state = local(initial=initial)
    else:
        time = jnp.sum(inputs["dt"], axis=1)
        decay = recurrence.decay_of(time[..., None] * inputs["A"][None])
        y, state = elementwise.shard_twice(
            lambda initial: local(initial=initial),
            decay,
            segment_ids,
            initial,
            axis_name=axis_name,
            exchange=exchange,
        )
    if D is not None:
        y = y + D.astype(dtype)[None, None] * tokens["x"]
    return y.astype(x.dtype), state.astype(state_dtype)


def _run_xla(x, dt, A, B, C, starts, initial, *, form, chunk_size, precision):
    if x.size == 0 or A.size == 0:
        return jnp.zeros_like(x), initial
    if form == "chunk":
        plan = _selective_chunk.Plan(min(chunk_size, x.shape[1]), precision)
        return _selective_chunk.selective_chunk(
            plan, x, dt, A, B, C, starts, initial
        )
    if form == "recurrent":
        return _recurrent(x, dt, A, B, C, starts, initial, precision)
    repeat = x.shape[2] // B.shape[2]
    B, C = (jnp.repeat(z, repeat, axis=2) for z in (B, C))
    log_decay = dt[..., None] * A[None, None]
    write = (dt * x)[..., None] * B
    h, state = _elementwise.parallel(write, log_decay, starts, initial)
    return jnp.sum(h * C, axis=-1), state


def _recurrent(x, dt, A, B, C, starts, initial, precision):
    """One token after the other; inside, D is [G, D/G]."""
    groups = B.shape[2]
    tokens = [z.reshape(*z.shape[:2], groups, -1) for z in (x, dt)]
    A = A.reshape(groups, -1, A.shape[1])
    state = initial.reshape(-1, *A.shape)

    def step(state, token):
        x, dt, B, C, start = token
        write = (dt * x)[..., None] * B[:, :, None]
        decay = recurrence.decay_of(dt[..., None] * A[None])
        affine = recurrence.Affine(decay, write)
        if start is not None:
            affine = recurrence.reset(affine, start)
        state = recurrence.apply(affine, state)
        y = jnp.einsum("bgrn,bgn->bgr", state, C, precision=precision)
        return state, y

    tokens = (*tokens, B, C, starts)
    if x.shape[1] == 1:  # decoding: no loop around a single step
        token = jax.tree.map(lambda x: jnp.squeeze(x, 1), tokens)
        state, y = step(state, token)
        y = y[:, None]
    else:
        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
        state, y = jax.lax.scan(step, state, tokens)
        y = jnp.moveaxis(y, 0, 1)
    return y.reshape(x.shape), state.reshape(initial.shape)


_dispatch.IMPLEMENTATIONS[_OP] = {"xla": _dispatch.Implementation(_run_xla)}
