"""The additive rule with one gate a key channel, on the GPU.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

Forward: a pass over chunks writes the state in front of each, one launch the
scores inside chunks, one the outputs.  Backward: the pass in reverse, then the
gradients of the values and of all else.  Memory beside inputs and results: one
state a chunk and direction and C scores a token, in the dtype of the operands.
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
    log_decay: jax.Array,
    starts: jax.Array | None,
    initial: jax.Array,
    *,
    scale: float,
    chunk_size: int | None = None,
    launcher: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Outputs, final state, and what the backward pass needs.

    Args:
      q: [B, T, G, K], float16, bfloat16 or float32.
      k: [B, T, G, K].
      v: [B, T, H, V], H a multiple of G.
      log_decay: float32 [B, T, H, K].
      starts: bool [B, T], where a document starts, or None.
      initial: float32 [B, H, K, V].
      scale: factor of q.
      chunk_size: of `problems.chunk_sizes`, or None for the table's choice.
      launcher: as of `launch.call`.

    Returns:
      (y [B, T, H, V] in the dtype of v, state float32 [B, H, K, V], states
      [B, H, chunks, K, V] in front of each chunk, scores [B, H, chunks, C, C]).
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
    from seqjax_kernels.decay import channel_scores

    chunk = problem.config.chunk
    tiles = problem.config.scores
    constants = problems.constants(
        problem, tiles, HALVINGS=chunk.bit_length() - 1
    )
    for name in ("V", "BV", "GATE"):
        del constants[name]
    programs = problem.batch * problem.heads * problem.chunks
    (scores,) = launch.call(
        channel_scores.channel_scores_kernel,
        q,
        k,
        log_decay,
        starts,
        outputs=[
            jax.ShapeDtypeStruct(
                (*states.shape[:3], chunk, chunk), problem.state_dtype
            )
        ],
        grid=(programs, 1, 1),
        constants=constants,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    inputs = (q, v, log_decay, starts, states, scores)
    y = _walk(problem, inputs, v.dtype, False, launcher)
    return y, final, states, scores


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    starts: jax.Array | None,
    states: jax.Array,
    scores: jax.Array,
    y_bar: jax.Array,
    final_bar: jax.Array,
    *,
    scale: float,
    chunk_size: int | None = None,
    launcher: str | None = None,
) -> tuple[jax.Array, ...]:
    """Cotangents of the inputs of `forward`.

    Args:
      q: as of `forward`, like all that has its name.
      k: [B, T, G, K].
      v: [B, T, H, V].
      log_decay: [B, T, H, K].
      starts: [B, T] or None.
      states: [B, H, chunks, K, V] from `forward`.
      scores: [B, H, chunks, C, C] from `forward`.
      y_bar: [B, T, H, V].
      final_bar: float32 [B, H, K, V].
      scale: factor of q.
      chunk_size: as of `forward`.
      launcher: as of `launch.call`.

    Returns:
      (dq, dk, dv in the dtypes of q, k, v; dlog_decay, dinitial float32).
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
    inputs = (k, y_bar, log_decay, starts, state_bars, scores)
    v_bar = _walk(problem, inputs, v.dtype, True, launcher)
    from seqjax_kernels.decay import channel_keys

    tiles = problem.config.keys
    constants = problems.constants(
        problem,
        tiles,
        SCALE=problem.scale,
        HALVINGS=problem.config.chunk.bit_length() - 1,
    )
    del constants["GATE"]
    # Value heads that share a key head each write a part of its gradients.
    repeat = problem.heads // problem.groups
    dtypes = (q.dtype, k.dtype) if repeat == 1 else (jnp.float32,) * 2
    blocks = -(-problem.key // tiles.key)
    q_bar, k_bar, log_bar = launch.call(
        channel_keys.channel_keys_kernel,
        q,
        k,
        v,
        log_decay,
        starts,
        states,
        y_bar,
        state_bars,
        outputs=[
            jax.ShapeDtypeStruct(log_decay.shape, d)
            for d in (*dtypes, jnp.float32)
        ],
        grid=(problem.batch * problem.heads * problem.chunks * blocks, 1, 1),
        constants=constants,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    if repeat > 1:
        parts = (*q.shape[:3], repeat, q.shape[3])
        q_bar = jnp.sum(q_bar.reshape(parts), axis=3).astype(q.dtype)
        k_bar = jnp.sum(k_bar.reshape(parts), axis=3).astype(k.dtype)
    return q_bar, k_bar, v_bar, log_bar, initial_bar


def _walk(problem, inputs, dtype, reverse, launcher):
    """Outputs, or in reverse the gradients of the values."""
    from seqjax_kernels.decay import channel_walk

    tiles = problem.config.walk
    blocks = -(-problem.value // tiles.value)
    constants = problems.constants(
        problem,
        tiles,
        SCALE=problem.scale,
        READ_SCALE=1.0 if reverse else problem.scale,
        REVERSE=reverse,
    )
    del constants["GATE"]
    shape = (problem.batch, problem.length, problem.heads, problem.value)
    (made,) = launch.call(
        channel_walk.channel_walk_kernel,
        *inputs,
        outputs=[jax.ShapeDtypeStruct(shape, dtype)],
        grid=(problem.batch * problem.heads * problem.chunks * blocks, 1, 1),
        constants=constants,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    return made
