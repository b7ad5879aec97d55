"""Keeps the tests of one operator together, and counts what they compile.

Compiling is most of this suite's cost and programs live in one process, so an
operator's tests run one after another.  With `--durations=N` (and no xdist) the
summary has a line an operator: programs compiled, seconds in the compiler,
seconds in all.
"""

import collections
import time

import jax
import pytest

_COMPILED = "/jax/core/compile/backend_compile_duration"
_current = [""]
_cost = collections.defaultdict(lambda: [0, 0.0, 0.0])


def _operator_of(item):
    callspec = getattr(item, "callspec", None)
    operator = callspec.params.get("operator") if callspec else None
    return getattr(operator, "name", "")


def _count(event, seconds, **_):
    if event == _COMPILED and _current[0]:
        _cost[_current[0]][0] += 1
        _cost[_current[0]][1] += seconds


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_collection_modifyitems(items):
    """Orders the tests of this folder by operator; others stay in front."""
    mine = [i for i in items if "tests/conformance/" in i.nodeid]
    other = [i for i in items if "tests/conformance/" not in i.nodeid]
    items[:] = other + sorted(mine, key=_operator_of)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    _current[0] = _operator_of(item)
    start = time.perf_counter()
    try:
        return (yield)
    finally:
        if _current[0]:
            _cost[_current[0]][2] += time.perf_counter() - start
        _current[0] = ""


def pytest_terminal_summary(terminalreporter, config):
    if not config.option.durations or not _cost:
        return
    terminalreporter.section("conformance: programs compiled, seconds")
    for name, (programs, compiling, total) in sorted(_cost.items()):
        terminalreporter.line(
            f"{name:32} {programs:4d} {compiling:8.1f} {total:8.1f}"
        )
