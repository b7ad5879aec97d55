"""Inputs for the suite, deterministic: segment ids, boards, expectations."""

import functools
import zlib

import jax
import numpy as np

from tests.conformance import spec


def rng_for(*key) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def one_segment(batch: int, length: int) -> np.ndarray:
    return np.zeros((batch, length), np.int32)


def mixed_segments(batch: int, length: int) -> np.ndarray:
    """Rows of every kind: whole, packed, padded anywhere, empty.

    Row 0 is one document; 1 and 2 are packed; 3 is packed with single padding
    tokens anywhere, also inside documents; 4 begins with a long run of padding
    and ends with another; 5 has none but padding; 6 has documents of one token;
    7 has a long run of padding inside a document.
    """
    rng = rng_for("segments", batch, length)
    ids = np.zeros((batch, length), np.int32)
    t = np.arange(length)
    for row in range(batch):
        kind = row % 8
        if kind in (1, 2, 3, 7):
            borders = rng.random(length) < (0.05 if kind != 7 else 0.02)
            ids[row] = np.cumsum(borders & (t > 0)) * (1 + (kind == 2))
        if kind == 3:
            ids[row, rng.random(length) < 0.2] = -1
        if kind == 4:
            ids[row, : length // 3] = -1
            ids[row, length - length // 5 :] = -1
        if kind == 5:
            ids[row] = -1
        if kind == 6:
            ids[row] = t
        if kind == 7:
            ids[row, length // 4 : (3 * length) // 4] = -1
        real = ids[row] >= 0
        if real.any():  # every row begins with document 0
            ids[row, real] -= ids[row, real][0]
    return ids


def draw(operator, batch, length, segment_ids, key="") -> spec.Problem:
    """A problem with random inputs, initial state and cotangents."""
    rng = rng_for(operator.name, batch, length, key)
    problem = spec.Problem(
        operator.make_inputs(rng, batch, length),
        operator.make_state(rng, batch),
        segment_ids,
        None,
        (),
    )
    return with_cotangents(operator, problem, rng)


def with_cotangents(operator, problem, rng) -> spec.Problem:
    """Random cotangents of the shapes that the oracle returns."""
    ids = problem.segment_ids
    first = problem.replace(
        inputs=_tokens(operator, problem.inputs, 0, 1), segment_ids=ids[:, :1]
    )
    out = spec.expect(operator, first, gradients=False)

    def normal(x, shape):
        g = rng.normal(size=shape)
        if np.iscomplexobj(x):
            return (g + 1j * rng.normal(size=shape)).astype(np.complex64)
        return g.astype(np.float32)

    return problem.replace(
        ct_y=normal(out.y, ids.shape + out.y.shape[2:]),
        ct_state=tuple(normal(x, x.shape) for x in out.state),
    )


def _tokens(operator, inputs, start, stop):
    """Inputs of the tokens start..stop."""

    def part(name, x):
        n = operator.steps.get(name, 1)
        return x[:, start * n : stop * n]

    timed = operator.timed(inputs)
    return {n: part(n, x) if n in timed else x for n, x in inputs.items()}


@functools.cache
def board(operator, length=spec.LENGTH, batch=spec.BATCH):
    """The standard problem of a length and what the oracle says of it."""
    ids = mixed_segments(batch, length)
    problem = draw(operator, batch, length, ids)
    gradients = length in spec.GRADIENT_LENGTHS
    return problem, spec.expect(operator, problem, gradients)


@functools.cache
def plain_board(operator, length=spec.LENGTH, batch=spec.BATCH):
    """One document a row and no padding: bits can be traced to tokens."""
    return draw(operator, batch, length, one_segment(batch, length), "plain")


def cast(problem: spec.Problem, dtype) -> spec.Problem:
    """The problem with all real arrays of the given width."""

    def to(x):
        x = np.asarray(x)
        if x.dtype.kind in "iub":
            return x
        if x.dtype.kind == "c":
            wide = np.dtype(dtype) == np.float64
            return x.astype(np.complex128 if wide else np.complex64)
        return x.astype(dtype)

    return problem.replace(
        inputs={n: to(x) for n, x in problem.inputs.items()},
        state=jax.tree.map(to, problem.state),
        ct_y=to(problem.ct_y),
        ct_state=tuple(to(x) for x in problem.ct_state),
    )


def rows_from(new, old, rows):
    """The state `new` in the given rows and `old` elsewhere."""

    def pick(a, b):
        b = np.array(b)
        b[rows] = np.asarray(a)[rows]
        return b

    return jax.tree.map(pick, new, old)


def cut(problem: spec.Problem, operator, start: int, stop: int):
    """Tokens start..stop of a problem, with the same initial state."""
    return problem.replace(
        inputs=_tokens(operator, problem.inputs, start, stop),
        segment_ids=problem.segment_ids[:, start:stop],
        ct_y=problem.ct_y[:, start:stop],
    )


def disturb(operator, problem, where, rng):
    """Other random values in the tokens that `where` [B, T] names."""
    fresh = operator.make_inputs(rng, *where.shape)
    inputs = dict(problem.inputs)
    for name in operator.timed(inputs):
        there = np.repeat(where, operator.steps.get(name, 1), 1)
        inputs[name] = np.array(inputs[name])
        inputs[name][there] = fresh[name][there]
    return problem.replace(inputs=inputs)
