"""Reverse-mode differentiation of plain numpy code, for the oracles.

An oracle is a loop one can read in a minute; writing its adjoint by hand would
double it and invite mistakes, and differentiating it with JAX would cost one
compilation per shape.  So each operation here records how a cotangent flows to
its arguments, and `gradients` walks the record backwards.

Values are float64 or complex128.  Complex derivatives follow JAX: the cotangent
of a holomorphic operation is the plain transpose, without conjugation.
"""

import itertools

import numpy as np

_counter = itertools.count()


class Variable:
    """An array and, for each parent, the map from cotangent to cotangent."""

    __array_priority__ = 100  # numpy arrays on the left defer to our operators

    def __init__(self, value, parents=()):
        self.value = np.asarray(value)
        if self.value.dtype.kind != "c":
            self.value = self.value.astype(np.float64)
        self.parents = tuple(parents)
        self.order = next(_counter)
        self.grad = None
        self.owns_grad = False  # whether nothing else holds that array

    @property
    def shape(self):
        return self.value.shape

    def __add__(self, other):
        return _binary(self, other, np.add, lambda g, a, b: (g, g))

    def __sub__(self, other):
        return _binary(self, other, np.subtract, lambda g, a, b: (g, -g))

    def __mul__(self, other):
        return _binary(self, other, np.multiply, lambda g, a, b: (g * b, g * a))

    def __truediv__(self, other):
        return _binary(
            self,
            other,
            np.divide,
            lambda g, a, b: (g / b, -g * a / (b * b)),
        )

    def __rsub__(self, other):
        return constant(other) - self

    def __rtruediv__(self, other):
        return constant(other) / self

    def __neg__(self):
        return self * -1.0

    __radd__ = __add__
    __rmul__ = __mul__

    def __getitem__(self, index):
        return Variable(self.value[index], [(self, _At(index))])


class _At:
    """Where a cotangent belongs: added in place, a loop over T stays linear."""

    def __init__(self, index):
        self.index = index
        parts = index if isinstance(index, tuple) else (index,)
        # an array of indices may name a place twice
        self.unique = not any(isinstance(p, np.ndarray | list) for p in parts)

    def add(self, g, variable):
        if not variable.owns_grad:
            grad = np.zeros(variable.shape, g.dtype)
            if variable.grad is not None:
                grad = grad + variable.grad
            variable.grad, variable.owns_grad = grad, True
        if self.unique:
            variable.grad[self.index] += g
        else:
            np.add.at(variable.grad, self.index, g)


def constant(value):
    """A Variable without parents; Variables pass through."""
    return value if isinstance(value, Variable) else Variable(value)


def _fit(g, value):
    """Sums a cotangent over the axes along which `value` was broadcast."""
    while g.ndim > value.ndim:
        g = g.sum(0)
    for axis, size in enumerate(value.shape):
        if size == 1 and g.shape[axis] != 1:
            g = g.sum(axis, keepdims=True)
    return g if value.dtype.kind == "c" else np.real(g)


def _binary(a, b, function, pullback):
    a, b = constant(a), constant(b)

    def left(g):
        return _fit(pullback(g, a.value, b.value)[0], a.value)

    def right(g):
        return _fit(pullback(g, a.value, b.value)[1], b.value)

    return Variable(function(a.value, b.value), [(a, left), (b, right)])


def _unary(a, value, derivative):
    return Variable(value, [(a, lambda g: _fit(g * derivative, a.value))])


def exp(a):
    value = np.exp(a.value)
    return _unary(a, value, value)


def log(a):
    return _unary(a, np.log(a.value), 1.0 / a.value)


def sigmoid(a):
    value = 1.0 / (1.0 + np.exp(-a.value))
    return _unary(a, value, value * (1.0 - value))


def log_sigmoid(a):
    value = -np.logaddexp(0.0, -a.value)
    return _unary(a, value, -np.expm1(value))  # sigmoid(-a)


def silu(a):
    return a * sigmoid(a)


def absolute(a):
    return _unary(a, np.abs(a.value), np.sign(a.value))


def maximum(a, b):
    a, b = constant(a), constant(b)
    return where(a.value >= b.value, a, b)


def real(a):
    return Variable(a.value.real, [(a, lambda g: g.astype(a.value.dtype))])


def where(mask, a, b):
    """Selects by a numpy mask; what is not selected gets no cotangent."""
    a, b = constant(a), constant(b)
    mask = np.asarray(mask)
    return Variable(
        np.where(mask, a.value, b.value),
        [
            (a, lambda g: _fit(np.where(mask, g, 0.0), a.value)),
            (b, lambda g: _fit(np.where(mask, 0.0, g), b.value)),
        ],
    )


def einsum(subscripts, a, b):
    """`np.einsum` of two arrays in which no letter is summed in one alone."""
    a, b = constant(a), constant(b)
    inputs, out = subscripts.split("->")
    left, right = inputs.split(",")
    return Variable(
        np.einsum(subscripts, a.value, b.value),
        [
            (a, lambda g: np.einsum(f"{out},{right}->{left}", g, b.value)),
            (b, lambda g: np.einsum(f"{out},{left}->{right}", g, a.value)),
        ],
    )


def total(a, axis, keepdims=False):
    """The sum over one axis."""

    def spread(g):
        g = g if keepdims else np.expand_dims(g, axis)
        return np.broadcast_to(g, a.shape)

    return Variable(a.value.sum(axis, keepdims=keepdims), [(a, spread)])


def concatenate(arrays, axis):
    arrays = [constant(a) for a in arrays]
    value = np.concatenate([a.value for a in arrays], axis)
    ends = np.cumsum([a.shape[axis] for a in arrays])
    before = (slice(None),) * (axis % value.ndim)

    def part(a, end):
        there = (*before, slice(end - a.shape[axis], end))
        return lambda g: g[there]

    parts = [(a, part(a, end)) for a, end in zip(arrays, ends, strict=True)]
    return Variable(value, parts)


def stack(arrays, axis):
    return concatenate([expand(a, axis) for a in arrays], axis)


def expand(a, axis):
    """Inserts an axis of size one."""
    value = np.expand_dims(a.value, axis)
    return Variable(value, [(a, lambda g: np.squeeze(g, axis))])


def repeat_heads(a, heads, axis=2):
    """Head j of `heads` reads head j // (heads / present heads)."""
    if a.shape[axis] == heads:
        return a
    index = np.arange(heads) // (heads // a.shape[axis])
    return a[(slice(None),) * axis + (index,)]


def gradients(outputs, cotangents, inputs):
    """Gradients of sum <cotangent, output> with respect to `inputs`."""
    reachable, todo = {}, list(outputs)
    while todo:
        variable = todo.pop()
        if id(variable) not in reachable:
            reachable[id(variable)] = variable
            variable.grad, variable.owns_grad = None, False
            todo.extend(parent for parent, _ in variable.parents)
    for output, cotangent in zip(outputs, cotangents, strict=True):
        _accumulate(output, np.asarray(cotangent, output.value.dtype))
    for variable in sorted(reachable.values(), key=lambda v: -v.order):
        if variable.grad is not None:
            for parent, pullback in variable.parents:
                if isinstance(pullback, _At):
                    pullback.add(variable.grad, parent)
                else:
                    _accumulate(parent, pullback(variable.grad))
    return [
        np.zeros(v.shape, v.value.dtype) if v.grad is None else v.grad
        for v in inputs
    ]


def _accumulate(variable, g):
    if variable.grad is None:
        variable.grad = g
    else:
        variable.grad, variable.owns_grad = variable.grad + g, True
