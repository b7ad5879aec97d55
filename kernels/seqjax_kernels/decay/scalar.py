"""The additive rule with at most one gate a token and head, on the GPU.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

Forward: a pass over chunks writes the state in front of each, then all outputs
at once.  Backward: the same pass in reverse over dS, then all gradients at
once.  Memory beside inputs and results: one state a chunk and direction, in
the dtype of the operands (K V / C numbers a token and head).
"""

import jax
import jax.numpy as jnp

from seqjax_kernels import launch
from seqjax_kernels.decay import passes
from seqjax_kernels.decay import problems


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    starts: jax.Array | None,
    initial: jax.Array,
    *,
    scale: float,
    chunk_size: int | None = None,
    launcher: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs, final state, and what the backward pass needs.

    Args:
      q: [B, T, G, K], float16, bfloat16 or float32.
      k: [B, T, G, K].
      v: [B, T, H, V], H a multiple of G.
      log_decay: float32 [B, T, H], [H], or None.
      starts: bool [B, T], where a document starts, or None.
      initial: float32 [B, H, K, V].
      scale: factor of q.
      chunk_size: of `problems.chunk_sizes`, or None for the table's choice.
      launcher: as of `launch.call`.

    Returns:
      (y [B, T, H, V] in the dtype of v, state float32 [B, H, K, V], states
      [B, H, chunks, K, V] in front of each chunk).
    """
    problem = problems.make_problem(q, k, v, log_decay, scale, chunk_size)
    starts = passes.as_int8(starts)
    states, final = passes.carry(
        problem,
        k,
        v,
        log_decay,
        starts,
        initial,
        reverse=False,
        launcher=launcher,
    )
    inputs = (q, k, v, log_decay, starts, states)
    y = _walk(problem, inputs, v.dtype, False, launcher)
    return y, final, states


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    starts: jax.Array | None,
    states: jax.Array,
    y_bar: jax.Array,
    final_bar: jax.Array,
    *,
    scale: float,
    gate_gradient: bool = True,
    chunk_size: int | None = None,
    launcher: str | None = None,
) -> tuple[jax.Array | None, ...]:
    """Cotangents of the inputs of `forward`.

    Args:
      q: as of `forward`, like all that has its name.
      k: [B, T, G, K].
      v: [B, T, H, V].
      log_decay: [B, T, H], [H], or None.
      starts: [B, T] or None.
      states: [B, H, chunks, K, V] from `forward`.
      y_bar: [B, T, H, V].
      final_bar: float32 [B, H, K, V].
      scale: factor of q.
      gate_gradient: False where `log_decay` is a constant.
      chunk_size: as of `forward`.
      launcher: as of `launch.call`.

    Returns:
      (dq, dk, dv in the dtypes of q, k, v; dlog_decay float32 [B, T, H] or
      None; dinitial float32).
    """
    problem = problems.make_problem(q, k, v, log_decay, scale, chunk_size)
    starts = passes.as_int8(starts)
    state_bars, initial_bar = passes.carry(
        problem,
        q,
        y_bar,
        log_decay,
        starts,
        final_bar,
        reverse=True,
        launcher=launcher,
    )
    inputs = (k, q, y_bar, log_decay, starts, state_bars)
    v_bar = _walk(problem, inputs, v.dtype, True, launcher)
    from seqjax_kernels.decay import key_gradients

    tiles = problem.config.keys
    blocks = -(-problem.key // tiles.key)
    shares = problem.shares
    dtypes = (q.dtype, k.dtype) if shares == 1 else (jnp.float32,) * 2
    made = [jax.ShapeDtypeStruct((shares, *q.shape), d) for d in dtypes]
    constants = problems.constants(
        problem, tiles, SCALE=problem.scale, SHARES=shares
    )
    if gate_gradient and log_decay is not None:
        gates = (blocks, *v.shape[:3])
        made.append(jax.ShapeDtypeStruct(gates, jnp.float32))
    else:
        constants["gate_bar"] = None
    bars = launch.call(
        key_gradients.key_gradients_kernel,
        q,
        k,
        v,
        log_decay,
        starts,
        states,
        y_bar,
        state_bars,
        outputs=made,
        grid=(
            problem.batch * problem.groups * problem.chunks * shares * blocks,
            1,
            1,
        ),
        constants=constants,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    q_bar, k_bar, *gate_bar = (
        x[0] if x.shape[0] == 1 else jnp.sum(x, axis=0) for x in bars
    )
    return (
        q_bar.astype(q.dtype),
        k_bar.astype(k.dtype),
        v_bar,
        gate_bar[0] if gate_bar else None,
        initial_bar,
    )


def _walk(problem, inputs, dtype, reverse, launcher):
    """Outputs, or in reverse the gradients of the values."""
    from seqjax_kernels.decay import walk

    tiles = problem.config.walk
    blocks = -(-problem.value // tiles.value)
    shape = (problem.batch, problem.length, problem.heads, problem.value)
    (made,) = launch.call(
        walk.walk_kernel,
        *inputs,
        outputs=[jax.ShapeDtypeStruct(shape, dtype)],
        grid=(problem.batch * problem.heads * problem.chunks * blocks, 1, 1),
        constants=problems.constants(
            problem, tiles, SCALE=problem.scale, REVERSE=reverse
        ),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    return made
