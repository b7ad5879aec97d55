"""Every kernel x configuration compiles, and takes what is written down.

The numbers stand in a file of each family, resources.json; after a change that
is meant, rewrite them with

    python -m tests.kernels.compiled.write_resources FAMILY
"""

import re

import pytest

from seqjax_kernels import _direct
from seqjax_kernels import devices
from seqjax_kernels import registry
from seqjax_kernels import resources
from tests.kernels.compiled import recorded

# Registers and shared memory may move this far with a release of Triton's.
TOLERANCE = 0.10
# What the oldest ptxas reads that knows the device: that of CUDA 12.8, and of
# 12.9 from compute capability 10.0 on.
NEWEST_PTX, NEWEST_PTX_OF_100 = 87, 88

every_case = pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(family, case, id=f"{family}-{case.name}".replace(" ", "-"))
        for family in registry.FAMILIES
        for case in registry.cases(family)
    ],
)
every_kind = pytest.mark.parametrize("kind", recorded.KINDS)


@every_kind
@every_case
def test_kernels(family, case, kind):
    known = recorded.read(family).get(kind, {})
    faults = []
    for name, launched in recorded.launches(case, kind).items():
        found = resources.of(launched.program)
        spill = registry.spills(family).get((kind, name), 0)
        faults += [f"{name}: {f}" for f in faults_of(launched, found, spill)]
        if name not in known:
            faults.append(f"{name} is not in resources.json")
            continue
        faults += [
            f"{name}: {f}"
            for f in differences(recorded.entry(found), known[name])
        ]
    assert not faults, "\n".join(faults)


def faults_of(launched, found, spill):
    """What no kernel may do, but spill the bytes that its family names."""
    program = launched.program
    asm = _direct.compile_program(program).asm
    allowed = devices.shared_limit(program.arch)
    if found.shared > allowed:
        yield f"shared memory {found.shared}, at most {allowed}"
    if found.spill > spill:
        yield f"spills {found.spill} bytes, {spill} are named"
    if resources.blocks_at_once(found, program.arch) < 1:
        yield "does not fit a multiprocessor"
    version = re.search(r"\.version (\d+)\.(\d+)", asm["ptx"])
    assert version is not None
    newest = NEWEST_PTX if program.arch < 100 else NEWEST_PTX_OF_100
    if int(version[1]) * 10 + int(version[2]) > newest:
        yield f"PTX {version[0]}, at most {newest / 10}"
    if re.search(r"(?<![\w.])(atom|red)\.", asm["ptx"]):
        yield "uses atomics"
    precisions = set(re.findall(r"inputPrecision = (\w+)", asm["ttir"]))
    half = any(d in ("bfloat16", "float16") for _, d in program.pointers)
    if "tt.dot" in asm["ttir"]:
        # Without a word a product of float32 is rounded to tf32.
        if not half and not precisions:
            yield "a product of float32 without a precision"
        if precisions != {"ieee"} and not found.hgmma + found.mma:
            yield "products without tensor cores"
    if "tf32" in precisions:
        yield "rounds to tf32"
    if "tf32" in asm["ptx"] and "tf32x3" not in precisions:
        yield "tf32 where float32 is promised"


def differences(found, known):
    """Entries farther apart than the tolerance, or of another kind."""
    for key, value in found.items():
        was = known.get(key)
        if was is None or abs(value - was) > TOLERANCE * was:
            if key in ("hgmma", "mma"):
                # How often is the compiler's; whether at all is ours.
                if was is not None and bool(was) == bool(value):
                    continue
            yield f"{key} is {value}, was {was}"


def test_what_is_written_down_is_launched():
    for family in registry.FAMILIES:
        for kind in recorded.KINDS:
            names = set()
            for case in registry.cases(family):
                names |= set(recorded.launches(case, kind))
            left = set(recorded.read(family).get(kind, {})) - names
            left |= {n for k, n in registry.spills(family) if k == kind} - names
            assert not left, f"{family}: {left} are launched no more"


def test_differences_are_seen():
    known = {"registers": 100, "shared": 1024, "hgmma": 8, "mma": 0}
    assert not list(differences(known | {"registers": 110}, known))
    assert not list(differences(known | {"hgmma": 16}, known))
    for change in ({"registers": 111}, {"hgmma": 0}, {"mma": 1}):
        assert len(list(differences(known | change, known))) == 1
    assert list(differences(known, {})) == [
        f"{key} is {value}, was None" for key, value in known.items()
    ]


@pytest.mark.parametrize(
    ("found", "arch", "blocks"),
    [
        (resources.Resources(32, 0, 0, 4, 0, 0), 90, 16),
        (resources.Resources(128, 0, 0, 4, 0, 0), 90, 4),
        (resources.Resources(168, 0, 100_000, 8, 0, 0), 90, 1),
        (resources.Resources(40, 0, 232448, 4, 0, 0), 90, 1),
        (resources.Resources(40, 0, 232449, 4, 0, 0), 90, 0),
        (resources.Resources(40, 0, 166913, 4, 0, 0), 80, 0),
        (resources.Resources(16, 0, 0, 1, 0, 0), 89, 32),
    ],
)
def test_occupancy(found, arch, blocks):
    assert resources.blocks_at_once(found, arch) == blocks
