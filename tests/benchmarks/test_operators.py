"""The benchmark measures what it says, and its baseline is the operator."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _cases
from benchmarks import _measure
from benchmarks import operators
from tests import _tree

TINY = _cases.Sizes(batch=2, length=24, heads=4, key_dim=4, value_dim=6)
# One of each kind of chunk will do; these are those of others.
SHARED = {
    "comba",
    "delta_rule",
    "gated_delta_rule_2",
    "lightning_attention",
    "retention",
    "rwkv6",
}
WITH_BASELINE = [
    pytest.param(name, marks=[pytest.mark.full] * (name in SHARED))
    for name, case in _cases.CASES.items()
    if case.baseline is not None
]
FIELDS = {
    "operator": str,
    "form": str,
    "chunk_size": int | None,
    "direction": str,
    "milliseconds": float,
    "quartiles": list,
    "times_faster": float | None,
    "temporary_bytes": int,
    "growth": float | None,
    "compile_seconds": float,
}


@pytest.mark.parametrize("name", WITH_BASELINE)
def test_baseline_is_the_operator(name):
    case = _cases.CASES[name]
    inputs = case.inputs(jax.random.key(3), TINY, jnp.float32)
    rivals = _measure.contenders(
        case, _measure.Settings(forms=("chunk",), chunk_sizes=(16,))
    )
    assert list(rivals) == [(_measure.BASELINE, None), ("chunk", 16)]
    shape = jax.eval_shape(case.baseline, *inputs).shape
    cotangent = jax.random.normal(jax.random.key(4), shape)
    expected, got = (
        jax.jit(_measure.with_gradients(function))(cotangent, *inputs)
        for function in rivals.values()
    )
    assert len(got[1]) == len(inputs)
    for theirs, ours in zip(
        jax.tree.leaves(expected), jax.tree.leaves(got), strict=True
    ):
        assert theirs.dtype == ours.dtype
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-5


def test_table_has_every_contender(tmp_path, capsys):
    settings = _measure.Settings(
        ops=("gated_linear_attention", "short_convolution"),
        forms=("recurrent", "chunk"),
        chunk_sizes=(16, 32),
        sizes=TINY,
        repeats=1,
        growth=False,
    )
    path = tmp_path / "table.json"
    operators.run(settings, path)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 5
    table = json.loads(path.read_text())
    assert table["jax"] == jax.__version__
    assert table["settings"]["sizes"]["length"] == TINY.length
    contenders = [
        (row["operator"], row["form"], row["chunk_size"], row["direction"])
        for row in table["rows"]
    ]
    gated = [
        (_measure.BASELINE, None),
        ("recurrent", None),
        ("chunk", 16),
        ("chunk", 32),
    ]
    assert contenders == [
        (operator, *form, direction)
        for operator, forms in (
            ("gated_linear_attention", gated),
            ("short_convolution", [("only", None)]),
        )
        for direction in _measure.DIRECTIONS
        for form in forms
    ]
    for row in table["rows"]:
        assert set(row) == set(FIELDS)
        for field, kind in FIELDS.items():
            assert isinstance(row[field], kind), field
        assert row["milliseconds"] > 0
        if row["form"] == _measure.BASELINE:
            assert row["times_faster"] == 1.0
            if row["direction"] == "both":
                # The state of every token is kept.
                state = TINY.batch * TINY.heads * TINY.key_dim * TINY.value_dim
                assert row["temporary_bytes"] >= 4 * TINY.length * state
    # A scan over tokens is no rival of a convolution.
    assert table["rows"][-1]["times_faster"] is None


def test_growth_is_that_of_the_scratch_memory():
    settings = _measure.Settings(
        forms=("parallel",), sizes=TINY._replace(length=256), repeats=1
    )
    # One matrix [T, T] a head, or none at all, and states of every token.
    for row in _measure.measure("linear_attention", settings):
        if row.form == "parallel":
            assert row.growth == pytest.approx(16, rel=0.2)
        elif row.direction == "both":
            assert row.growth == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("name", _cases.CASES)
def test_every_operator_and_form_compiles_in_bfloat16(name):
    case = _cases.CASES[name]
    inputs = jax.eval_shape(
        lambda key: case.inputs(key, TINY, jnp.bfloat16), jax.random.key(0)
    )
    rivals = _measure.contenders(case, _measure.Settings())
    assert len(rivals) == (case.baseline is not None) + max(1, len(case.forms))
    for function in rivals.values():
        y = jax.eval_shape(function, *inputs)
        assert y.dtype == jnp.bfloat16
        _, gradients = jax.eval_shape(
            _measure.with_gradients(function), y, *inputs
        )
        assert gradients == inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ops": ("retension",)}, "did you mean 'retention'"),
        ({"forms": ("chunked",)}, "did you mean 'chunk'"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"chunk_sizes": (0,)}, "chunk_sizes must be at least 1"),
        ({"sizes": TINY._replace(heads=0)}, "heads must be at least 1"),
        ({"dtype": "float8"}, "dtype must be among"),
        ({"forms": ("recurrent",), "chunk_sizes": (16,)}, "not among forms"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        operators.run(_measure.Settings()._replace(**change))


def _command(*flags):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.operators", *flags],
        cwd=_tree.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_prints_the_table():
    done = _command(
        "--ops=linear_attention",
        "--forms=chunk",
        "--length=32",
        "--heads=1",
        "--key_dim=4",
        "--value_dim=4",
        "--repeats=1",
        "--nogrowth",
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "batch",
        "operator",
        "linear_attention",
        "linear_attention",
    ]


def test_command_refuses_a_wrong_name_without_a_traceback():
    done = _command("--ops=linear_atention")
    assert done.returncode == 1
    assert "did you mean 'linear_attention'?" in done.stderr
    assert "Traceback" not in done.stderr
