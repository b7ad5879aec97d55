"""The launches that carry the state over the chunks of a sequence."""

import functools

import jax
import jax.numpy as jnp

from seqjax_kernels import launch
from seqjax_kernels.decay import configs
from seqjax_kernels.decay import problems


def carry(
    problem: problems.Problem,
    x: jax.Array,
    y: jax.Array,
    log_decay: jax.Array | None,
    starts: jax.Array | None,
    first: jax.Array,
    *,
    reverse: bool,
    launcher: str | None,
) -> tuple[jax.Array, ...]:
    """States in front of each chunk and the last, in the order of the pass.

    Args:
      problem: of the call.
      x: [B, T, G, K], k, or q in reverse.
      y: [B, T, H, V], v, or the outputs' cotangents in reverse.
      log_decay: [B, T, H], [B, T, H, K], [H], or None.
      starts: int8 [B, T] or None.
      first: float32 [B, H, K, V], the state that comes in.
      reverse: from the last chunk to the first.
      launcher: as of `launch.call`.

    Returns:
      ([B, H, chunks, K, V] in `problem.state_dtype`, [B, H, K, V] float32).
    """
    from seqjax_kernels.decay import states

    tiles = problem.config.states
    grid = (
        -(-problem.key // tiles.key),
        -(-problem.value // tiles.value),
    )
    rows = problem.batch * problem.heads
    parts = configs.parts(rows * grid[0] * grid[1], problem.chunks)
    constants = problems.constants(
        problem,
        tiles,
        SCALE=problem.scale if reverse else 1.0,
        PARTS=parts,
        REVERSE=reverse,
    )
    call = functools.partial(
        launch.call,
        grid=(rows * parts, *grid),
        constants=constants,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        launcher=launcher,
    )
    writes = decays = None
    per_head = (problem.batch, problem.heads)
    state = (problem.key, problem.value)
    if parts > 1:
        channels = problem.gate == problems.CHANNEL_GATE
        factors = (problem.key,) if channels else ()
        writes, decays = call(
            states.parts_kernel,
            x,
            y,
            log_decay,
            starts,
            outputs=[
                jax.ShapeDtypeStruct((*per_head, parts, *state), jnp.float32),
                jax.ShapeDtypeStruct((*per_head, parts, *factors), jnp.float32),
            ],
        )
    kept = jax.ShapeDtypeStruct(
        (*per_head, problem.chunks, *state), problem.state_dtype
    )
    return call(
        states.states_kernel,
        x,
        y,
        log_decay,
        starts,
        first,
        writes,
        decays,
        outputs=[kept, jax.ShapeDtypeStruct((*per_head, *state), jnp.float32)],
    )


def as_int8(starts: jax.Array | None) -> jax.Array | None:
    """`starts` as kernels load it."""
    return None if starts is None else starts.astype(jnp.int8)
