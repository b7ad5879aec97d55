"""Softmax attention: grouped heads, windows, sinks, forget gates, a cache.

    y_i = sum_{j <= i} p_ij v_j / (sum_{j <= i} p_ij + exp(sink))
    p_ij = exp(scale q_i . k_j + sum of log_decay over tokens j+1 .. i)

Vaswani et al. (2017), arXiv:1706.03762; sinks: arXiv:2309.17453 and 2508.10925;
forget gate: Lin et al., "Forgetting Transformer" (2025), arXiv:2503.02130.
Cost O(T^2 (K + V)) a head, O(T w (K + V)) with a window of w; a decode step
reads the whole cache, O(S (K + V)).  That is where it is weak: the state grows
with the text, unlike every other mixer here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _dispatch
from seqjax.ops import _softmax_cache
from seqjax.ops import _softmax_checks
from seqjax.ops import _softmax_xla

AttentionState = _softmax_cache.AttentionState
attention_cache = _softmax_cache.attention_cache

_OP = "softmax_attention"
# Measured on two CPU cores, forward plus backward (B 8, H 4, K = V 32 and 64).
_PARALLEL_UP_TO = 64
_BLOCK = 128


def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    sink: jax.Array | None = None,
    log_decay: jax.Array | None = None,
    scale: float | None = None,
    initial_state: AttentionState | None = None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation: str | Sequence[str] | None = None,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> tuple[jax.Array, AttentionState | None]:
    """Softmax attention over the document and the cache a token belongs to.

    Args:
      q: [B, T, H, K].
      k: [B, T, Hk, K], H a multiple of Hk; query head h reads head h // (H/Hk).
      v: [B, T, Hk, V].
      causal: whether a token sees only itself and tokens before it. False (a
        bidirectional encoder) has no state, window, forget gate or recurrent
        form.
      window: a token sees itself and the window - 1 real tokens before it;
        None for all.
      sink: [H], a logit in the denominator that carries no value.
      log_decay: [B, T, H], natural-log forget gates <= 0, any magnitude. A gate
        acts on all tokens before its own; -inf hides them.
      scale: multiplies q; default K**-0.5.
      initial_state: cache, from an earlier call or `attention_cache`. The new
        tokens see cached tokens of the document the cache ends in, where the
        first segment id continues it. Differentiable in k, v and log_decay.
      segment_ids: int32 [B, T], >= 0 and non-decreasing over real tokens, -1 at
        padding; None: all tokens continue the document the cache ends in (0 in
        an empty cache).
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`; any
        T a device.  The whole initial_state is given to every device.
      exchange: with axis_name, how keys and values move, b bytes of them a
        device.  "all_gather": P b in one message, and their cotangents back in
        one; held until the backward pass.  "ring" (chunk form): P - 1 messages
        of b, twice that backward, never more than 2 b held, and causal work
        balanced over devices.  None: "all_gather" up to 32 MiB gathered (and
        in the recurrent form), else "ring".  A window takes None: it moves its
        halo alone, the window - 1 tokens in front of a shard.
      form: "parallel" (T x T, any derivative), "chunk" (online softmax in
        blocks, memory linear in T, reverse mode once), "recurrent" (one query
        after another, any derivative) or None: parallel up to T = 64 and chunk
        above, which was the faster on CPU, forward plus backward.
      chunk_size: tokens a block of the chunk form; default 128.
      implementation: "xla" or None.
      state_dtype: dtype of k and v in the returned state; default that of
        initial_state, else of k and v.

    Returns:
      y [B, T, H, V] in the dtype of v, accumulated in float32 (float64 if every
      float input is float64), exactly 0 at padding; and the cache with these
      tokens added, of the capacity of initial_state, else T, or window - 1 with
      a window. None instead of a cache where causal is False, and with
      axis_name where no initial_state is given: the cache of a whole sequence
      is not kept on every device unless asked for, with an `attention_cache`.

    Raises:
      ValueError: a shape, dtype, option or combination that is not accepted.
    """
    shapes = _softmax_checks.check_shapes(q, k, v, sink, log_decay, segment_ids)
    _softmax_checks.check_options(
        causal, window, log_decay, initial_state, form, state_dtype
    )
    floats = {"q": q, "k": k, "v": v, "sink": sink, "log_decay": log_decay}
    if initial_state is not None:
        _softmax_checks.check_state(
            shapes, initial_state, window, log_decay, segment_ids, axis_name
        )
        for name in ("k", "v", "log_decay", "log_decay_low"):
            floats[f"initial_state.{name}"] = getattr(initial_state, name)
        initial_state = jax.tree.map(jnp.asarray, initial_state)
        # Rounding errors are constants; the sum they mend has the gradient.
        initial_state = initial_state._replace(
            log_decay_low=jax.lax.stop_gradient(initial_state.log_decay_low)
        )
    _softmax_checks.check_exchange(window, axis_name, exchange, form)
    chosen, block = _contract.choose_form(
        _OP,
        _contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        length=shapes["T"],
        recurrent_up_to=0,
        default_chunk=_BLOCK,
    )
    short = axis_name is None and shapes["T"] <= _PARALLEL_UP_TO
    if form is None and chunk_size is None and short:
        chosen = "parallel"
    accumulate = _contract.accumulation_dtype(_OP, **floats)
    if state_dtype is not None:
        state_dtype = _contract.check_state_dtype(_OP, state_dtype, accumulate)
    plan = _softmax_xla.Plan(
        causal=causal,
        window=window,
        scale=_contract.check_scale(_OP, scale, shapes["K"]),
        form=chosen,
        block=min(block, _contract.round_up(shapes["T"], 16)),
        accumulate=accumulate,
        state_dtype=state_dtype,
        axis_name=axis_name,
        exchange=exchange,
    )
    inputs = _softmax_xla.Inputs(
        q, k, v, sink, log_decay, initial_state, segment_ids
    )
    run = _dispatch.choose(_OP, implementation, plan, inputs)
    return run(plan, inputs)


_dispatch.IMPLEMENTATIONS[_OP] = {
    "xla": _dispatch.Implementation(_softmax_xla.run)
}
