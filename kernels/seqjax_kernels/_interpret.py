"""Triton's interpreter over numpy arrays, with every access checked.

It runs one program after another on the CPU, so it alone would let pass what
a GPU does not forgive. Each load and store is looked up here: it must lie
inside one array, inputs are only read, and each cell of an output is written
exactly once and never read; nor may an integer of 32 bits overflow. Triton
looks at TRITON_INTERPRET when it is imported, so this needs a process of its
own.
"""

# pyright: reportMissingImports=false

import dataclasses
import threading

import numpy as np

# Between two arrays, so that neighbours in memory are never taken for one.
_GAP = 4096
# Triton's interpreter keeps its state in globals.
_lock = threading.Lock()
_memory: "_Memory | None" = None


class BadAccess(RuntimeError):
    """A kernel touched memory that it must not touch."""


class Array:
    """What Triton's interpreter asks of a tensor, over guarded bytes."""

    def __init__(self, name: str, value: np.ndarray, written: bool):
        self.name = name
        self.bytes = np.full(value.nbytes + 2 * _GAP, 0xFF, np.uint8)
        inside = self.bytes[_GAP : _GAP + value.nbytes]
        self.value = inside.view(value.dtype).reshape(value.shape)
        if not written:
            self.value[...] = value
        self.writes = np.zeros(value.size, np.uint8) if written else None
        self.start = self.bytes.ctypes.data + _GAP
        self.stop = self.start + value.nbytes

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: self.value.shape)

    def data_ptr(self):
        return self.start

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *args, **kwargs):
        del args, kwargs
        return self

    def set_(self, *args):
        del args

    def copy_(self, other):
        del other

    def storage_offset(self):
        return 0

    def size(self):
        return self.value.shape

    def stride(self):
        return tuple(s // self.value.itemsize for s in self.value.strides)

    def element_size(self):
        return self.value.itemsize

    def check_filled(self, kernel: str) -> None:
        """Raises BadAccess if a cell of an output was never written."""
        if self.writes is None or self.writes.all():
            return
        raise BadAccess(
            f"{kernel}: {int((self.writes == 0).sum())} of {self.value.size}"
            f" cells of {self.name} are never written, the first is"
            f" {int(np.argmin(self.writes))}"
        )


class _Memory:
    """The arrays of one launch."""

    def __init__(self, kernel: str, arrays: list[Array]):
        self.kernel = kernel
        self.arrays = arrays
        self.program: tuple[int, int, int] = (0, 0, 0)
        self.patched: set[int] = set()  # modules, by `_patch_once`

    def _where(self, what: str) -> str:
        return f"{self.kernel}, program {self.program}: {what}"

    def _find(self, addresses: np.ndarray, width: int, verb: str) -> Array:
        low, high = int(addresses.min()), int(addresses.max()) + width
        nearest = None
        for array in self.arrays:
            if array.start <= low and high <= array.stop:
                return array
            if array.start - _GAP <= low and low < array.stop + _GAP:
                nearest = array
        if nearest is None:
            raise BadAccess(self._where(f"{verb} outside of every array"))
        item = nearest.value.itemsize
        raise BadAccess(
            self._where(
                f"{verb} {nearest.name} outside of its {nearest.value.size}"
                f" cells, at {(low - nearest.start) // item} to"
                f" {(high - nearest.start) // item - 1}"
            )
        )

    def read(self, addresses: np.ndarray, width: int) -> None:
        if not addresses.size:
            return
        array = self._find(addresses, width, "reads")
        if array.writes is not None:
            raise BadAccess(self._where(f"reads the output {array.name}"))

    def write(self, addresses: np.ndarray, width: int) -> None:
        if not addresses.size:
            return
        array = self._find(addresses, width, "writes")
        if array.writes is None:
            raise BadAccess(self._where(f"writes the input {array.name}"))
        cells = (addresses - np.uint64(array.start)).astype(np.int64) // width
        np.add.at(array.writes, cells, 1)
        twice = cells[array.writes[cells] > 1]
        if twice.size:
            raise BadAccess(
                self._where(
                    f"writes {array.name} a second time at cell {twice[0]}"
                )
            )


def run(kernel, grid, inputs, outputs, constants) -> dict[str, np.ndarray]:
    """Interprets one launch.

    Args:
      kernel: the function under `triton.jit`.
      grid: three numbers of programs.
      inputs: {argument: array or None} in order.
      outputs: {argument: jax.ShapeDtypeStruct} in order.
      constants: {argument: value} of the constexpr arguments.

    Returns:
      {argument: array} of the outputs.

    Raises:
      BadAccess: an access that a GPU would not forgive.
    """
    global _memory
    with _lock:
        _patch()
        given = {
            name: None if value is None else Array(name, value, False)
            for name, value in inputs.items()
        }
        made = {
            name: Array(name, np.empty(s.shape, s.dtype), True)
            for name, s in outputs.items()
        }
        arrays = [a for a in (*given.values(), *made.values()) if a is not None]
        _memory = _Memory(kernel.fn.__name__, arrays)
        try:
            # Lanes that are masked out may hold anything, but an overflow is
            # an exponential of something positive.
            with np.errstate(all="ignore", over="raise"):
                kernel[grid](**given, **made, **constants)
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, BadAccess | FloatingPointError):
                raise cause from None
            raise
        finally:
            _memory = None
    for array in made.values():
        array.check_filled(kernel.fn.__name__)
    return {name: array.value for name, array in made.items()}


_patched = False


def _patch() -> None:
    """Makes the interpreter report accesses, and compute as a GPU does."""
    global _patched
    if _patched:
        return
    _patched = True
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    place = builder.set_grid_idx

    def set_grid_idx(self, x, y, z):
        _memory.program = (x, y, z)
        return place(self, x, y, z)

    def create_masked_load(self, ptrs, mask, *rest):
        width = ptrs.get_element_ty().primitive_bitwidth // 8
        _memory.read(ptrs.data[mask.data.astype(bool)], width)
        return load(self, ptrs, mask, *rest)

    def create_masked_store(self, ptrs, value, mask, *rest):
        width = ptrs.get_element_ty().primitive_bitwidth // 8
        _memory.write(ptrs.data[mask.data.astype(bool)], width)
        return store(self, ptrs, value, mask, *rest)

    def atomic(self, *args):
        del self, args
        raise BadAccess("atomics depend on the order of programs")

    builder.set_grid_idx = set_grid_idx
    builder.create_masked_load = create_masked_load
    builder.create_masked_store = create_masked_store
    builder.create_atomic_cas = builder.create_atomic_rmw = atomic
    _fix_bfloat16(builder, interpreter)
    _check_overflow(builder, interpreter)
    _patch_once(interpreter)
    interpreter.ScanOps.generic_scan = _scan


def _check_overflow(builder, interpreter) -> None:
    """Integers of 32 bits do not overflow.

    Triton's own check of this is off unless it debugs, and its operations are
    made all the same: a quarter of the time.
    """
    import triton.language as tl

    growing = (np.add, np.subtract, np.multiply)
    own = interpreter.interpreter_builder
    own.options = dataclasses.replace(own.options, sanitize_overflow=False)
    binary = builder.binary_op

    def binary_op(self, lhs, rhs, op):
        if op in growing and lhs.dtype.scalar == tl.int32:
            exact = op(lhs.data.astype(np.int64), rhs.data)
            if (exact != exact.astype(np.int32)).any():
                what = f"{op.__name__} overflows 32 bits"
                raise BadAccess(_memory._where(what))
        return binary(self, lhs, rhs, op)

    builder.binary_op = binary_op


def _scan(self, inputs) -> list:
    """Runs and what lies behind them combined in a tree, as on a GPU.

    The interpreter adds one element after another, so nothing would show that
    a function is not associative, and takes a call for each.
    """
    arrays = [x.handle.data for x in inputs]
    size = arrays[0].shape[self.axis]
    # Along the axis, under any number of others.
    index = np.arange(size).reshape((size,) + (1,) * (arrays[0].ndim - 1))
    index = np.moveaxis(index, 0, self.axis)
    step = 1
    while step < size:
        pairs = (
            *(np.roll(x, step, self.axis) for x in arrays),
            *arrays,
        )
        types = [x.dtype for x in inputs] * 2
        made = self.combine_fn.fn(*map(self.to_tensor, pairs, types))
        made = made if isinstance(made, tuple) else (made,)
        arrays = [
            np.where(index >= step, new.handle.data, old)
            for new, old in zip(made, arrays, strict=True)
        ]
        step *= 2
    return list(map(self.to_tensor, arrays, (x.dtype for x in inputs)))


def _patch_once(interpreter) -> None:
    """Looks through Triton's language once a launch.

    The interpreter does at every call of a function inside a kernel, and finds
    it patched: a third of the time.
    """
    import triton.language as tl

    patch = interpreter._patch_lang
    languages = (tl, tl.core)

    def patch_lang(function):
        named = function.__globals__.values()
        found = {id(m) for m in languages if any(m is n for n in named)}
        if found <= _memory.patched:
            return interpreter._LangPatchScope()
        _memory.patched |= found
        return patch(function)

    interpreter._patch_lang = patch_lang


def _fix_bfloat16(builder, interpreter) -> None:
    """bfloat16 is held as uint16, and Triton 3.6 computes with those bits.

    It also truncates to bfloat16, where a GPU rounds to the nearest.
    """
    import jax.numpy as jnp
    import triton.language as tl

    dot, cast = builder.create_dot, builder.cast_impl
    binary, unary = builder.binary_op, builder.unary_op

    def is_bfloat16(*handles):
        return any(h.dtype.scalar == tl.bfloat16 for h in handles)

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def create_dot(self, a, b, d, *rest):
        if not is_bfloat16(a, b):
            return dot(self, a, b, d, *rest)
        product = np.matmul(widen(a), widen(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def binary_op(self, lhs, rhs, op):
        if is_bfloat16(lhs, rhs):
            raise BadAccess("arithmetic in bfloat16: convert to float32 first")
        return binary(self, lhs, rhs, op)

    def unary_op(self, arg, op):
        if is_bfloat16(arg):
            raise BadAccess("arithmetic in bfloat16: convert to float32 first")
        return unary(self, arg, op)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        bits = src.data.astype(jnp.bfloat16).view(np.uint16)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.binary_op = binary_op
    builder.unary_op = unary_op
