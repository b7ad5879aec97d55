"""Writes down what the kernels of families take, for tests to compare.

    python -m tests.kernels.compiled.write_resources [FAMILY ...]

compiles every case for every kind of device, a second or two each; it needs
no GPU. Look at the difference before it is committed.
"""

import sys

from seqjax_kernels import registry
from seqjax_kernels import resources
from tests.kernels.compiled import recorded


def main(families: list[str]) -> None:
    """Rewrites the files of the families, all if none is named."""
    for family in families or registry.FAMILIES:
        numbers = {}
        for kind in recorded.KINDS:
            numbers[kind] = {}
            for case in registry.cases(family):
                for name, launched in recorded.launches(case, kind).items():
                    found = resources.of(launched.program)
                    numbers[kind][name] = recorded.entry(found)
                    said = f", spills {found.spill}" if found.spill else ""
                    print(f"{kind} {name}: {numbers[kind][name]}{said}")
        recorded.write(family, numbers)


if __name__ == "__main__":
    main(sys.argv[1:])
