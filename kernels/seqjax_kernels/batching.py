"""`jax.vmap` of a launch as one launch over a larger batch."""

from collections.abc import Callable, Sequence

import jax

from seqjax_kernels import _varying


def fold(run: Callable[..., tuple], leads: Sequence[bool]) -> Callable:
    """`run`, but `jax.vmap` folds its axis into the batch.

    What `run` returns must lead with the batch, and rows of the batch must not
    depend on one another. Where vmap's axis is one of an array without a batch
    (a weight), the launches follow one another. Not differentiable: it belongs
    inside the two halves of a `jax.custom_vjp`.

    Args:
      run: takes arrays (or None) and returns a tuple of arrays [B, ...].
      leads: for each argument, True if it is an array [B, ...].

    Returns:
      A function of the same arguments.
    """

    def call(*arrays):
        present = [i for i, a in enumerate(arrays) if a is not None]

        def fill(given):
            filled = list(arrays)
            for i, array in zip(present, given, strict=True):
                filled[i] = array
            return filled

        @jax.custom_batching.custom_vmap
        def folded(*given):
            return tuple(run(*fill(given)))

        @folded.def_vmap
        def rule(size, batched, *given):
            lead = [leads[i] for i in present]
            if any(b and not l for b, l in zip(batched, lead, strict=True)):
                moving = [a for a, b in zip(given, batched, strict=True) if b]

                def one(moving):
                    rest = iter(moving)
                    return folded(
                        *(
                            next(rest) if b else a
                            for a, b in zip(given, batched, strict=True)
                        )
                    )

                made = jax.lax.map(one, moving)
                return made, (True,) * len(made)
            flat, batch = [], 0
            for array, is_batched, l in zip(given, batched, lead, strict=True):
                if l and not is_batched:
                    array = jax.numpy.broadcast_to(array, (size, *array.shape))
                if l:
                    batch = array.shape[1]
                    array = array.reshape(size * batch, *array.shape[2:])
                flat.append(array)
            made = call(*fill(flat))
            made = tuple(a.reshape(size, batch, *a.shape[1:]) for a in made)
            return made, (True,) * len(made)

        made = folded(*(arrays[i] for i in present))
        return _varying.like(made, arrays)

    return call
