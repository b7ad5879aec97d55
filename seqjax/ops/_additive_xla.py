"""The additive rule in plain JAX: which function runs a form."""

import jax.numpy as jnp

from seqjax.ops import _channel_chunk
from seqjax.ops import _channel_forms
from seqjax.ops import _scalar_chunk
from seqjax.ops import _scalar_forms

DEFAULT_CHUNK = 64


def run(
    q,
    k,
    v,
    log_decay,
    starts,
    initial,
    *,
    form,
    chunk_size,
    scale,
    dtype,
    precision,
    decay_gradient=True,
):
    """(y, state) of the additive rule; the reference of any kernel.

    Args are those of `_additive.prepare`, aligned; `form` and `chunk_size` are
    chosen, None being the default chunk.
    """
    chunk_size = chunk_size or DEFAULT_CHUNK
    if v.size == 0:
        return jnp.zeros(v.shape, dtype), initial
    if log_decay is not None and log_decay.ndim == 4 and form == "chunk":
        plan = _channel_chunk.make_plan(
            q,
            v,
            chunk_size=chunk_size,
            scale=scale,
            dtype=dtype,
            precision=precision,
        )
        return _channel_chunk.channel_chunk(
            plan, q, k, v, log_decay, starts, initial
        )
    plan = _scalar_chunk.make_plan(
        q,
        v,
        chunk_size=chunk_size,
        scale=scale,
        dtype=dtype,
        precision=precision,
        decay_gradient=decay_gradient,
    )
    if log_decay is not None and (
        form != "chunk" or q.shape[1] % (plan.chunk_size * plan.group)
    ):
        log_decay = of_tokens(log_decay, v.shape[:3])
    if form == "chunk":
        return _scalar_chunk.scalar_chunk(
            plan, q, k, v, log_decay, starts, initial
        )
    if form == "recurrent":
        function = _scalar_forms.scalar_recurrent
    elif log_decay is not None and log_decay.ndim == 4:
        function = _channel_forms.channel_parallel
    else:
        function = _scalar_forms.scalar_parallel
    return function(
        q,
        k,
        v,
        log_decay,
        starts,
        initial,
        scale=scale,
        dtype=dtype,
        precision=precision,
    )


def of_tokens(log_decay, shape):
    """Gates [H] as [B, T, H]; gates of tokens stay as they are."""
    if log_decay.ndim > 1:
        return log_decay
    return jnp.broadcast_to(log_decay[None, None], shape)
