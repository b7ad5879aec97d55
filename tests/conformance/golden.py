"""Golden cases, made ready for an operator and stacked into one program.

Cases differ in every dimension.  Padding tokens and channels of zeros change
nothing, so cases are padded to one shape and run under a single `vmap`.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np

from tests.conformance import runner
from tests.conformance import spec

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One golden case.

    Attributes:
        name: file/case.
        operator: the row, with the case's options.
        problem: ready for the operator.
        expected: arrays by part name, as `spec.Result.parts` names them.
        float32_error: the reference's own error, by part name.
        stored: "float64" or "float32".
        pullback: gradients of the inputs -> gradients of the file's inputs.
    """

    name: str
    operator: spec.Operator
    problem: spec.Problem
    expected: dict[str, np.ndarray]
    float32_error: dict[str, float]
    stored: str
    pullback: object

    def bound(self, part: str, kind: str) -> float:
        """kind: "float64", "recurrent" or "chunk"."""
        if kind == "float64":
            return 1e-10 if self.stored == "float64" else 2e-7
        hard = self.name.rsplit("/", 1)[1] in ("strong", "mixed")
        base = {"recurrent": 2e-6, "chunk": 1e-4 if hard else 1e-5}[kind]
        return max(base, 10 * self.float32_error.get(part, 0.0))

    def errors(self, result: spec.Result) -> dict[str, float]:
        got = dataclasses.replace(result, grads=self.pullback(result.grads))
        got = got.parts()
        return {n: spec.error(got[n], x) for n, x in self.expected.items()}

    def check(self, result: spec.Result, kind: str) -> None:
        faults = [
            f"{part}: {value:.2e} > {self.bound(part, kind):.0e}"
            for part, value in self.errors(result).items()
            if not value <= self.bound(part, kind)
        ]
        assert not faults, f"{self.name} ({kind}): " + ", ".join(faults)


def _scale_query(inputs, opts):
    scale = opts["scale"]
    ready = inputs | {"q": inputs["q"] * scale}
    return ready, lambda grads: grads | {"q": grads["q"] * scale}


@functools.cache
def _unit_scale(operator):
    return dataclasses.replace(
        operator,
        options={**operator.options, "scale": 1.0},
        oracle=functools.partial(operator.oracle, scale=1.0),
    )


@functools.cache
def load(operator: spec.Operator) -> tuple[Case, ...]:
    """All golden cases of an operator."""
    return tuple(
        case for golden in operator.golden for case in _cases(operator, golden)
    )


def _cases(operator, golden):
    index = json.loads((FOLDER / "ops.json").read_text())
    notes = index["ops"][golden.file]["cases"]
    with np.load(FOLDER / f"{golden.file}.npz") as arrays:
        for note in notes:
            if golden.cases is None or note["case"] in golden.cases:
                yield _case(operator, golden, note, arrays)


def _case(operator, golden, note, arrays):
    def read(kind):
        prefix = f"{note['case']}/{kind}/"
        return {
            name.removeprefix(prefix): arrays[name]
            for name in arrays.files
            if name.startswith(prefix)
        }

    raw, opts, out, ct, grad = map(read, ("in", "opt", "out", "ct", "grad"))
    opts = {n: x.item() for n, x in opts.items()}
    inputs = {
        ours: np.asarray(raw[theirs], np.float64)
        for theirs, ours in golden.inputs.items()
        if theirs in raw
    }
    if golden.variant is None:
        variant = _unit_scale(operator)
    else:
        variant = golden.variant(operator, inputs, opts)
    ready, pullback = (golden.prepare or _scale_query)(inputs, opts)

    errors = note["float32_error"]
    names = {"y": f"out/{golden.output}"}
    names |= {f"state[{i}]": f"out/{n}" for i, n in enumerate(golden.final)}
    names |= {
        f"grad {ours}": f"grad/{theirs}"
        for theirs, ours in golden.inputs.items()
    }
    names |= {
        f"grad state[{i}]": f"grad/{n}" for i, n in enumerate(golden.initial)
    }
    stored = {f"out/{n}": x for n, x in out.items()}
    stored |= {f"grad/{n}": x for n, x in grad.items()}
    y = out[golden.output]
    zeros = [np.zeros(out[n].shape) for n in golden.final]
    state = [raw.get(n) for n in golden.initial]
    absent = golden.absent or (0.0,) * len(zeros)
    state = [
        np.full_like(z, fill) if x is None else x
        for x, z, fill in zip(state, zeros, absent, strict=False)
    ]
    problem = spec.Problem(
        ready,
        _like_state(operator, state),
        np.zeros(y.shape[:2], np.int32),
        ct[golden.output],
        tuple(ct.get(n, z) for n, z in zip(golden.final, zeros, strict=True)),
    )
    return Case(
        f"{golden.file}/{note['case']}",
        variant,
        problem,
        {p: stored[n] for p, n in names.items() if n in stored},
        {p: errors[n] for p, n in names.items() if n in errors},
        note["stored"],
        pullback,
    )


def _like_state(operator, leaves):
    if not leaves:
        return None
    tree = jax.tree.structure(operator.zero_state(1))
    return jax.tree.unflatten(tree, leaves)


def stack(problems: list[spec.Problem]) -> spec.Problem:
    """Problems along a new leading axis, padded to one shape."""

    def join(*leaves, fill=0):
        shape = np.max([np.shape(x) for x in leaves], 0)
        padded = [
            np.pad(
                x,
                [(0, n - m) for n, m in zip(shape, np.shape(x), strict=True)],
                constant_values=fill,
            )
            for x in leaves
        ]
        return np.stack(padded)

    fields = [(p.inputs, p.state, p.ct_y, p.ct_state) for p in problems]
    inputs, state, ct_y, ct_state = jax.tree.map(join, *fields)
    ids = join(*(p.segment_ids for p in problems), fill=-1)
    return spec.Problem(inputs, state, ids, ct_y, ct_state)


@functools.cache
def _program(operator, options):
    def one(problem):
        return runner.pull(
            lambda i, s: runner.outputs(
                operator, i, s, problem["segment_ids"], **dict(options)
            ),
            problem["inputs"],
            problem["state"],
            problem["ct_y"],
            problem["ct_state"],
        )

    return jax.jit(jax.vmap(one))


def run(cases, dtype=np.float32, **options) -> list[spec.Result]:
    """Runs cases of one variant as one program and cuts the padding off."""
    operator = cases[0].operator
    problem = stack([case.problem for case in cases])
    fields = {
        name: jax.tree.map(
            lambda x: x if x.dtype.kind in "iub" else x.astype(dtype),
            getattr(problem, name),
        )
        for name in ("inputs", "state", "segment_ids", "ct_y", "ct_state")
    }
    options = tuple(sorted((k, v) for k, v in options.items() if v is not None))
    out = jax.device_get(_program(operator, options)(fields))
    return [_cut(case, i, out) for i, case in enumerate(cases)]


def _cut(case, index, out):
    def crop(x, like):
        return x[(index, *(slice(n) for n in np.shape(like)))]

    y, leaves, _, grads, state_grads = out
    problem = case.problem
    return spec.Result(
        crop(y, problem.ct_y),
        tuple(
            crop(x, c) for x, c in zip(leaves, problem.ct_state, strict=False)
        ),
        None,
        {n: crop(g, problem.inputs[n]) for n, g in grads.items()},
        tuple(
            crop(g, s)
            for g, s in zip(
                state_grads, jax.tree.leaves(problem.state), strict=True
            )
        ),
    )
