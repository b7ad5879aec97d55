"""What the suite must know about an operator: one `Operator` a table row.

A new operator is a new row in `table.py` (and its oracle in `tests/oracles`).
No test names an operator.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from seqjax import recurrence as seqjax_recurrence
from tests.oracles import recurrence

Arrays = dict[str, np.ndarray]

# The board: the one shape on which most tests run, so that they share programs.
BATCH = 8
LENGTH = 130
LENGTHS = (1, 2, 15, 63, 64, 65, 127, 130, 257)
GRADIENT_LENGTHS = (1, 65, 130)
# In chunks of 64; the board has T = 130 in chunks of 16.
FEW_LENGTHS = (1, 65)
FEW_CHUNK_SIZES = (16,)
CHUNK_SIZES = (16, 32, 64, 128)
FORMS = ("recurrent", "chunk", "parallel")


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """A golden file and how its names become ours.

    Attributes:
        file: name of tests/golden/<file>.npz.
        inputs: file name of an input -> our argument; others are left to
            `prepare`.
        output: file name of the output.
        initial: file names of the initial state's leaves.
        final: file names of the final state's leaves, as compared.
        absent: values of the initial state's leaves in cases without a state;
            None for zeros.
        cases: cases to take; None for all.
        variant: (operator, raw inputs, opts) -> the row with the options (and
            oracle) of a case.  Cases that give the identical object run as one
            program.  The default fixes scale=1, since `prepare` applies it.
        prepare: (raw inputs, opts) -> (inputs, pullback), where pullback turns
            gradients of the inputs into gradients of the raw ones.  Both by
            our names.  The default multiplies q by opt scale.
    """

    file: str
    inputs: Mapping[str, str]
    output: str = "o"
    initial: tuple[str, ...] = ("h0",)
    final: tuple[str, ...] = ("ht",)
    absent: tuple[float, ...] | None = None
    cases: tuple[str, ...] | None = None
    variant: Callable[..., "Operator"] | None = None
    prepare: Callable[[Arrays, dict], tuple[Arrays, Callable]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One row of the table.

    Attributes:
        name: the row's name, also the test id.
        function: the operator's name in `seqjax.ops`.
        make_inputs: (rng, B, T) -> inputs by argument name, float32 (complex64)
            arrays; what is passed by keyword to the operator.
        oracle: (inputs, state, segment_ids) -> (y, compared state), written
            with tests.oracles.tape.
        make_state: (rng, B) -> an initial state as the operator takes it, its
            shape independent of T.
        empty_state: B -> the state before any token; None for zeros like
            `make_state`'s.
        parameters: inputs without batch and time axes.
        steps: tokens of an input for one of y, where not 1 (delta product).
        output_like: the input whose dtype y has.
        options: keyword options fixed for this row.
        forms: the forms it has; () for an operator of one form.
        core: name of the row that runs on the same core and meets everything
            in the default run; this one meets there what may differ from row to
            row, and everything with `--full`.  None for a row that stands for
            its core.
        beyond_core: whether it does more than its core with what crosses
            tokens: stabilises, or sends other things between devices.
        lengths: the list of T.
        chunk_sizes: the chunk sizes tried on the board.
        table_lengths: lengths of the error table beyond the board's.
        exchanges: the exchange methods it takes; None for an operator that has
            no choice.
        chunk_exchanges: those of them that only the chunk form takes.
        replicated: (rng, B, T) -> inputs of which `replicated_names` have time
            axes of size 1, to be broadcast inside shard_map; None to skip.
        hard: (rng, inputs) -> {label: inputs of the same shapes}.
        compared: operator's final state -> leaves that the oracle's state
            equals; JAX code, differentiable.
        rounding_leaves: float leaves of the state that only mend the rounding
            of another; constants, whose gradient is 0.
        resumable: whether gradients chain through the raw state (`compared`
            is the identity).
        golden: golden files.
        faults: label -> (change of inputs, argument that the message names,
            text of what came), beyond the faults that every operator shares.
        capacity_is_length: whether the state without an initial one is a cache
            of T tokens, in the dtype of the inputs.
        forgets: whether the final state holds nothing of earlier documents (a
            cache of tokens may).
        complex_inputs: whether inputs are complex (there is no half precision).
        second_order: whether forward mode over reverse mode is promised for
            recurrent and parallel.
    """

    name: str
    function: str
    make_inputs: Callable[..., Arrays]
    oracle: Callable[..., Any]
    make_state: Callable[..., Any]
    empty_state: Callable[[int], Any] | None = None
    parameters: tuple[str, ...] = ()
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    output_like: str = "v"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forms: tuple[str, ...] = FORMS
    core: str | None = None
    beyond_core: bool = False
    lengths: tuple[int, ...] = LENGTHS
    chunk_sizes: tuple[int, ...] = CHUNK_SIZES
    table_lengths: tuple[int, ...] = (2048,)
    exchanges: tuple[str | None, ...] = seqjax_recurrence.EXCHANGES
    chunk_exchanges: tuple[str, ...] = ()
    replicated: Callable[..., Arrays] | None = None
    hard: Callable[..., dict[str, Arrays]] = lambda rng, inputs: {}
    compared: Callable[[Any], Any] = lambda state: state
    rounding_leaves: tuple[int, ...] = ()
    resumable: bool = True
    golden: tuple[Golden, ...] = ()
    faults: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    capacity_is_length: bool = False
    forgets: bool = True
    complex_inputs: bool = False
    second_order: bool = True

    def only_in_full(self, values, few) -> set:
        """Which of `values` the default run leaves out."""
        return set() if self.core is None else set(values) - set(few)

    def stands_alone(self) -> bool:
        """Whether no other row stands for its parallel form and its meshes."""
        return self.core is None or self.beyond_core

    def default_forms(self) -> tuple[str | None, ...]:
        """The forms that meet hard numbers and borders of documents by default.

        The core's row does so for the parallel form.
        """
        forms = self.forms or (None,)
        if self.stands_alone():
            return forms
        return tuple(form for form in forms if form != "parallel")

    def timed(self, inputs) -> list[str]:
        """Names of the inputs [B, T, ...]."""
        return [name for name in inputs if name not in self.parameters]

    def default_form(self) -> str | None:
        """The form under test where one is enough."""
        return "chunk" if "chunk" in self.forms else None

    def golden_forms(self) -> tuple[str | None, ...]:
        """The forms run on golden files: both kinds of bound."""
        return self.forms[:2] or (None,)

    def zero_state(self, batch: int):
        """The state before any token."""
        if self.empty_state is not None:
            return self.empty_state(batch)
        state = self.make_state(np.random.default_rng(0), batch)
        return jax.tree.map(np.zeros_like, state)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Inputs and cotangents for one call."""

    inputs: Arrays
    state: Any
    segment_ids: np.ndarray
    ct_y: np.ndarray
    ct_state: tuple[np.ndarray, ...]

    def replace(self, **changes) -> "Problem":
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a call gave, as numpy arrays; what is not known is left empty."""

    y: np.ndarray
    state: tuple[np.ndarray, ...]
    raw_state: Any = None
    grads: Arrays = dataclasses.field(default_factory=dict)
    state_grads: tuple[np.ndarray, ...] = ()

    def parts(self) -> Arrays:
        """All arrays by the name that an error report gives them."""
        parts = {"y": self.y}
        parts |= {f"state[{i}]": x for i, x in enumerate(self.state)}
        parts |= {f"grad {name}": x for name, x in self.grads.items()}
        parts |= {
            f"grad state[{i}]": x
            for i, x in enumerate(self.state_grads)
            if x is not None
        }
        return parts


def float_leaves(state) -> list[bool]:
    """Which leaves of a state are differentiable."""
    return [
        np.asarray(x).dtype.kind not in "iub" for x in jax.tree.leaves(state)
    ]


def expect(operator: Operator, problem: Problem, gradients=True) -> Result:
    """What the oracle says."""
    leaves = tuple(np.asarray(x) for x in jax.tree.leaves(problem.state))
    out = recurrence.evaluate(
        operator.oracle,
        {n: _wide(x) for n, x in problem.inputs.items()},
        leaves,
        problem.segment_ids,
        (problem.ct_y, problem.ct_state) if gradients else None,
    )
    if not gradients:
        return Result(out[0], out[1])
    kept = float_leaves(problem.state)
    state_grads = [g for g, k in zip(out[3], kept, strict=True) if k]
    for leaf in operator.rounding_leaves if state_grads else ():
        state_grads[leaf] = np.zeros_like(state_grads[leaf])
    return Result(out[0], out[1], None, out[2], tuple(state_grads))


def loss(result: Result, problem: Problem) -> float:
    """sum <cotangent, output>, whose gradients a Result holds."""
    parts = [(result.y, problem.ct_y)]
    parts += zip(result.state, problem.ct_state, strict=True)
    return float(sum(np.real(np.sum(a * b)) for a, b in parts))


def _wide(x):
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    return np.asarray(x, wide)


def error(a, b) -> float:
    """||a - b|| / (||b|| + 1e-6 sqrt(size)), norms in float64."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind != "c":
        a, b = a.astype(np.float64), b.astype(np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    scale = np.linalg.norm(b.ravel()) + 1e-6 * np.sqrt(b.size)
    if scale == 0.0:
        return 0.0
    return float(np.linalg.norm((a - b).ravel()) / scale)


def errors(result: Result, expected: Result) -> dict[str, float]:
    """The error of each part that `expected` has."""
    got = result.parts()
    return {name: error(got[name], x) for name, x in expected.parts().items()}


def check(result: Result, expected: Result, bound: float, what="") -> None:
    """Fails unless every part is finite and within the bound."""
    faults = [
        f"{name}: {value:.2e}"
        for name, value in errors(result, expected).items()
        if not value <= bound
    ]
    faults += [
        f"{name}: not finite"
        for name, x in result.parts().items()
        if not np.isfinite(_wide(x)).all()
    ]
    assert not faults, f"{what} beyond {bound:.0e}: " + ", ".join(faults)


def equal_bits(a, b) -> bool:
    """Same shape, dtype and value everywhere, NaN equal to itself."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and np.array_equal(a, b)
