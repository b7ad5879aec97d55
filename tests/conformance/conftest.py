"""Keeps the tests of one operator together, so that they share programs.

Compiling is most of this suite's cost and programs live in one process.
"""


def pytest_collection_modifyitems(items):
    """Orders the tests of this folder by operator, others stay in front."""

    def operator_of(item):
        callspec = getattr(item, "callspec", None)
        operator = callspec.params.get("operator") if callspec else None
        return getattr(operator, "name", "")

    mine = [i for i in items if "tests/conformance/" in i.nodeid]
    other = [i for i in items if "tests/conformance/" not in i.nodeid]
    items[:] = other + sorted(mine, key=operator_of)
