"""Runs operators under jit; equal requests share one program.

`run` compiles one program per (operator, options, shapes, dtype); it gives
values, or with gradients=True values and all gradients at once.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops
from tests.conformance import cases
from tests.conformance import spec

# Tests compile without LLVM's optimisation (tests/xla_flags.py).  One program
# a core is compiled as users get it (`board_options`).
BOARD_CHUNK = 16
AS_USERS = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):  # newer versions dropped the option
    AS_USERS["xla_cpu_use_fusion_emitters"] = True

# traces[key] counts how often a function was traced, by shapes
traces: dict[tuple, int] = {}


def call(operator, inputs, state, segment_ids, **options):
    """The operator itself, as the public function is called."""
    function = getattr(ops, operator.function)
    return function(
        **inputs,
        **{**operator.options, **options},
        initial_state=state,
        segment_ids=segment_ids,
    )


def split_state(state):
    """The differentiable leaves, and the map back from leaves to a state."""
    leaves, tree = jax.tree.flatten(state)
    kept = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
    floats = tuple(x for x, k in zip(leaves, kept, strict=True) if k)

    def join(floats):
        source = iter(floats)
        full = [
            next(source) if k else x for x, k in zip(leaves, kept, strict=True)
        ]
        return jax.tree.unflatten(tree, full)

    return floats, join


def outputs(operator, inputs, state, segment_ids, **options):
    """((y, compared leaves), raw state)."""
    y, final = call(operator, inputs, state, segment_ids, **options)
    return (y, tuple(jax.tree.leaves(operator.compared(final)))), final


def pull(function, inputs, state, ct_y, ct_state):
    """Values and gradients of `function`(inputs, state), as a Result's fields.

    Cotangents are cast to the dtypes of the outputs.
    """
    floats, join = split_state(state)

    def split(inputs, floats):
        return function(inputs, join(floats))

    (y, leaves), vjp, raw = jax.vjp(split, inputs, floats, has_aux=True)
    ct_state = ct_state or tuple(jnp.zeros_like(x) for x in leaves)
    ct = (
        ct_y.astype(y.dtype),
        tuple(c.astype(x.dtype) for c, x in zip(ct_state, leaves, strict=True)),
    )
    grads, state_grads = vjp(ct)
    return y, leaves, raw, grads, state_grads


@functools.cache
def program(operator, gradients, options, wide=False):
    """The jitted function for a request; `options` is a sorted tuple."""
    options = dict(options)

    def values(inputs, state, segment_ids):
        (y, leaves), raw = outputs(
            operator, inputs, state, segment_ids, **options
        )
        return y, leaves, raw

    def both(inputs, state, segment_ids, ct_y, ct_state):
        note_trace(operator, gradients, options, inputs, state)
        return pull(
            lambda i, s: outputs(operator, i, s, segment_ids, **options),
            inputs,
            state,
            ct_y,
            ct_state,
        )

    stands = operator.core is None and not wide
    as_users = stands and options.get("chunk_size") == BOARD_CHUNK
    return jax.jit(
        both if gradients else values,
        compiler_options=AS_USERS if as_users else None,
    )


def note_trace(operator, *what):
    shapes = jax.tree.map(
        lambda x: (jnp.shape(x), jnp.result_type(x)), what[2:]
    )
    key = (operator.name, what[0], str(what[1]), str(shapes))
    traces[key] = traces.get(key, 0) + 1


def run(operator, problem, *, gradients=True, wide=False, **options):
    """Runs the operator on a problem.

    Args:
        operator: a table row.
        problem: a spec.Problem.
        gradients: also pull the problem's cotangents back.
        wide: in float64.
        **options: form, chunk_size, implementation and the like; None is left
            to the operator's default.

    Returns:
        A spec.Result.
    """
    options = {k: v for k, v in options.items() if v is not None}
    options = tuple(sorted(options.items()))
    function = program(operator, gradients, options, wide)
    problem = cases.cast(problem, np.float64) if wide else problem
    args = (problem.inputs, problem.state, problem.segment_ids)
    if gradients:
        args += (problem.ct_y, problem.ct_state)
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        return spec.Result(*jax.device_get(function(*args)))


@functools.lru_cache(maxsize=16)
def run_board(operator, form, wide=False):
    """What the board gives: several tests look at the same result."""
    problem = cases.board(operator)[0]
    return run(operator, problem, wide=wide, **board_options(operator, form))


def options_of(operator, form, chunk_size=None):
    """Keyword options for a form, none for an operator of one form."""
    return {"form": form, "chunk_size": chunk_size} if operator.forms else {}


def board_options(operator, form):
    """Options of the program that most tests share: many chunk borders."""
    return options_of(operator, form, BOARD_CHUNK if form == "chunk" else None)


def length_options(operator):
    """Options of the programs for the list of lengths."""
    form = operator.default_form()
    return options_of(operator, form, 64 if form == "chunk" else None)
