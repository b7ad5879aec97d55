"""Programs of launches over arrays far larger than memory: where they reach."""

# pyright: reportMissingImports=false

import math

import jax
import numpy as np

from seqjax_kernels import _interpret
from seqjax_kernels import launch

# Addresses that nothing has; arrays are further apart than any is long.
_FIRST, _APART = 2**44, 2**42


class _Phantom(_interpret.Array):
    """An array without memory."""

    def __init__(self, name, number, of, written):
        self.name = name
        self.value = np.broadcast_to(np.zeros((), of.dtype), of.shape)
        self.writes = True if written else None
        self.start = _FIRST + number * _APART
        self.stop = self.start + math.prod(of.shape) * self.value.itemsize


def launches(monkeypatch, run, *inputs):
    """What `run` launches on arrays of these shapes; nothing is computed."""
    found = []

    def interpreted(*launched):
        found.append(launched)
        made = launched[3]
        return tuple(jax.numpy.empty(m.shape, m.dtype) for m in made.values())

    with monkeypatch.context() as patched:
        patched.setattr(launch, "_interpreted", interpreted)
        jax.eval_shape(run, *inputs)
    return found


def reach(monkeypatch, launched):
    """{argument: the farthest cell that the first and last program touch}.

    All that they load is 0.  Raises BadAccess as `_interpret.run` does.
    """
    from triton.runtime import interpreter

    _interpret._patch()
    kernel, grid, given, made, constants = launched
    shapes = {name: of for name, of in (given | made).items() if of is not None}
    arrays = {
        name: _Phantom(name, number, of, name in made)
        for number, (name, of) in enumerate(shapes.items())
    }
    farthest = dict.fromkeys(arrays, 0)

    def touch(ptrs, mask, verb):
        width = ptrs.get_element_ty().primitive_bitwidth // 8
        addresses = ptrs.data[mask.data.astype(bool)]
        if addresses.size:
            array = _interpret._memory._find(addresses, width, verb)
            assert (array.writes is not None) == (verb == "writes")
            cell = (int(addresses.max()) - array.start) // width
            farthest[array.name] = max(farthest[array.name], cell)

    def load(self, ptrs, mask, *rest):
        touch(ptrs, mask, "reads")
        of = ptrs.get_element_ty()
        zeros = np.zeros(ptrs.data.shape, interpreter._get_np_dtype(of))
        return interpreter.TensorHandle(zeros, of)

    def store(self, ptrs, value, mask, *rest):
        touch(ptrs, mask, "writes")

    builder = interpreter.InterpreterBuilder
    absent = dict.fromkeys(given.keys() - arrays.keys())
    with monkeypatch.context() as patched:
        patched.setattr(builder, "create_masked_load", load)
        patched.setattr(builder, "create_masked_store", store)
        patched.setattr(
            builder, "set_grid_dim", lambda b, *_: setattr(b, "grid_dim", grid)
        )
        last = (grid[0] - 1, grid[1] - 1, grid[2] - 1)
        for at in ((0, 0, 0), last):
            memory = _interpret._Memory(kernel.fn.__name__, [*arrays.values()])
            memory.program = at
            patched.setattr(_interpret, "_memory", memory)
            patched.setattr(
                builder,
                "set_grid_idx",
                lambda b, *_, at=at: setattr(b, "grid_idx", at),
            )
            kernel[(1, 1, 1)](**arrays, **absent, **constants)
    return farthest
