"""What the additive operators share behind their public functions."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import recurrence
from seqjax.ops import _additive_triton
from seqjax.ops import _additive_xla
from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.parallel import sequence

# Measured on two CPU cores, B1 K=V=64 and B16 K=V=32, H4: forward and backward
# take the same time in both forms between T = 2 and 4, forward alone between 8
# and 64; gradients decide.
RECURRENT_UP_TO = 4


def additive(
    op: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    *,
    scale: float,
    initial: jax.Array | None,
    options: _contract.Options,
    dtype,
    decay_gradient: bool = True,
    read_before: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs the additive rule on checked inputs.

    Args:
      op: name of the public operator, for messages and dispatch.
      q: [B, T, G, K].
      k: [B, T, G, K].
      v: [B, T, H, V], H a multiple of G.
      log_decay: [H], [B, T, H], [B, T, H, K] or None, any real dtype.
      scale: factor of q.
      initial: [B, H, K, V] or None for zeros.
      options: the caller's options; `segment_ids` are checked already.
      dtype: of accumulation.
      decay_gradient: False where `log_decay` is a constant of the operator.
      read_before: read the state before the token's decay and write (RWKV);
        needs `log_decay` of tokens.

    Returns:
      (y [B, T, H, V], state [B, H, K, V]), both in `dtype`.
    """
    prepared = prepare(
        op,
        q,
        k,
        v,
        log_decay,
        scale=scale,
        initial=initial,
        options=options,
        dtype=dtype,
        decay_gradient=decay_gradient,
        read_before=read_before,
    )
    if options.axis_name is not None:
        return sequence.shard_additive(
            prepared.local,
            **prepared.inputs,
            scale=scale,
            precision=prepared.precision,
            axis_name=options.axis_name,
            exchange=options.exchange,
            read_before=read_before,
        )
    return prepared.run()


class Prepared(NamedTuple):
    """The additive rule on checked and aligned inputs.

    Attributes:
      local: `(q, k, v, log_decay, starts, initial) -> (y, state)`, the rule on
        one device.
      inputs: its inputs but `starts`, and `segment_ids`; padding is masked out.
      precision: of products of q, k and v.
    """

    local: Callable
    inputs: dict[str, Any]
    precision: jax.lax.Precision

    def run(self) -> tuple[jax.Array, jax.Array]:
        """(y, state) of one device."""
        inputs = dict(self.inputs)
        segment_ids = inputs.pop("segment_ids")
        starts = None
        if segment_ids is not None:
            starts = recurrence.segment_starts(segment_ids)
        return self.local(**inputs, starts=starts)


def prepare(
    op: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    *,
    scale: float,
    initial: jax.Array | None,
    options: _contract.Options,
    dtype,
    decay_gradient: bool = True,
    read_before: bool = False,
) -> Prepared:
    """Chooses form and implementation; all as of `additive`."""
    batch, length, heads, value = v.shape
    form, _ = _contract.choose_form(
        op,
        options,
        length=length,
        recurrent_up_to=RECURRENT_UP_TO,
        default_chunk=_additive_xla.DEFAULT_CHUNK,
    )
    segment_ids, axis_name = options.segment_ids, options.axis_name
    if log_decay is not None:
        log_decay = log_decay.astype(dtype)
        if axis_name is not None or segment_ids is not None:
            log_decay = _additive_xla.of_tokens(
                log_decay, (batch, length, heads)
            )
    if initial is None:
        initial = jnp.zeros((batch, heads, q.shape[-1], value), dtype)
    inputs = _contract.align_inputs(
        dict(
            q=recurrence.mask_padding(segment_ids, q),
            k=recurrence.mask_padding(segment_ids, k),
            v=recurrence.mask_padding(segment_ids, v),
            log_decay=None
            if log_decay is None
            else recurrence.mask_padding(segment_ids, log_decay),
            segment_ids=segment_ids,
            initial=initial.astype(dtype),
        ),
        axis_name,
    )
    precision = _contract.precision(q, k, v)
    # Kernels choose their own chunk where none is asked for.
    run = _dispatch.choose(
        op,
        options.implementation,
        form=form,
        chunk_size=options.chunk_size,
        **inputs,
    )
    local = functools.partial(
        run,
        form=form,
        chunk_size=options.chunk_size,
        scale=scale,
        dtype=dtype,
        precision=precision,
        decay_gradient=decay_gradient,
    )
    if read_before:
        local = _reading_before(local)
    return Prepared(local, inputs, precision)


def gated(
    op: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    *,
    axes: str,
    default: Callable[[int], np.ndarray] | None = None,
    scale: float | None,
    initial_state: jax.Array | None,
    options: _contract.Options,
    state_dtype,
) -> tuple[jax.Array, jax.Array]:
    """Checks and runs an attention-like operator with decay.

    Args:
      op: name of the public operator.
      q: [B, T, Hk, K].
      k: [B, T, Hk, K].
      v: [B, T, H, V].
      log_decay: of shape `axes`, or None with `default`.
      axes: "H", "B T H" or "B T H K".
      default: gives the log decays [H] of H heads.
      scale: as the caller gave it.
      initial_state: as the caller gave it.
      options: as the caller gave them.
      state_dtype: as the caller gave it.

    Returns:
      (y in the dtype of v, state in `state_dtype`).
    """
    shapes = check_heads(op, q, k, v, initial_state, options.segment_ids)
    if log_decay is not None or default is None:
        shapes.bind("log_decay", log_decay, axes)
    dtype = _contract.accumulation_dtype(
        op, q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state
    )
    fixed = log_decay is None and default is not None
    if fixed:
        log_decay = jnp.asarray(default(shapes["H"]), dtype)
    y, state = additive(
        op,
        q,
        k,
        v,
        log_decay,
        scale=check_scale(op, scale, shapes["K"]),
        initial=initial_state,
        options=options,
        dtype=dtype,
        decay_gradient=not fixed,
    )
    state_dtype = _contract.check_state_dtype(op, state_dtype, dtype)
    return y.astype(v.dtype), state.astype(state_dtype)


def _reading_before(local):
    """`local`, but with tokens that read the state in front of them.

    That is the same rule with every decay and write one token later, where a
    document's first token finds none.
    """

    def run(q, k, v, log_decay, starts, initial):
        if v.size == 0:
            return local(q, k, v, log_decay, starts, initial)

        def later(x):
            x = jnp.pad(x[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2))
            if starts is None:
                return x
            cut = starts.reshape(starts.shape + (1,) * (x.ndim - 2))
            return jnp.where(cut, 0, x)

        y, state = local(
            q, later(k), later(v), later(log_decay), starts, initial
        )
        repeat = v.shape[2] // k.shape[2]
        last_k = jnp.repeat(k[:, -1].astype(state.dtype), repeat, axis=1)
        write = last_k[..., None] * v[:, -1, :, None].astype(state.dtype)
        decay = recurrence.decay_of(log_decay[:, -1])
        return y, recurrence.apply(recurrence.Affine(decay, write), state)

    return run


def register(op: str) -> None:
    """Gives `op` its row of implementations."""
    _dispatch.IMPLEMENTATIONS[op] = {
        "triton": _dispatch.Implementation(
            _additive_triton.run, _additive_triton.refuses
        ),
        "xla": _dispatch.Implementation(_additive_xla.run),
    }


def check_heads(op, q, k, v, initial_state, segment_ids, *, query="q"):
    """Binds the shapes of attention-like inputs; `query` is the name of q.

    Returns:
      `Shapes` with B, T, Hk, K, H, V.
    """
    shapes = _contract.Shapes(op)
    shapes.bind(query, q, "B T Hk K")
    shapes.bind("k", k, "B T Hk K")
    shapes.bind("v", v, "B T H V")
    shapes.divides("Hk", "H", "heads")
    if initial_state is not None:
        shapes.bind("initial_state", initial_state, "B H K V")
    _contract.check_segment_ids(op, shapes, segment_ids)
    return shapes


check_scale = _contract.check_scale
