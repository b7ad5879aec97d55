"""A configuration from the table, or the best that fits."""

import pytest

from seqjax_kernels import configs
from seqjax_kernels import devices
from seqjax_kernels.decay import configs as decay
from seqjax_kernels.decay import probes
from seqjax_kernels.decay import tables
from tests.kernels.compiled import recorded

KEY = configs.Key("keys", "bf16", 32)
TABLE = {"H200": {KEY: (64, 32, 4, 2)}, "A100": {KEY: (16, 16, 2, 1)}}
SMALL, LARGE = decay.Tiles(16, 16, 2, 1), decay.Tiles(64, 64, 4, 2)


def device(kind, arch=None):
    found = devices.find(kind)
    assert found is not None
    return found if arch is None else found._replace(arch=arch)


def chosen(candidates, where, key=KEY):
    """With programs that say what they cost, and are not compiled."""
    return configs.choose(TABLE, key, candidates, lambda *a: a, where)


def test_the_table_comes_first():
    # H100 has no entries of its own: those of its compute capability.
    for kind in ("H200", "H100", "GH200"):
        assert chosen([LARGE], device(kind)) == decay.Tiles(64, 32, 4, 2)
    assert chosen([LARGE], device("A100")) == SMALL


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        # candidate: (bytes spilled, warps at once); 0 warps: it does not fit
        ([(0, 8), (0, 16)], 0),
        ([(4, 8), (0, 8), (0, 16)], 1),
        ([(0, 4), (0, 8)], 1),
        ([(0, 0), (0, 4), (0, 6)], 2),
        ([(8, 8), (4, 8), (4, 4)], 1),
        ([(8, 8), (0, 0)], 0),
    ],
)
def test_what_is_chosen_without_a_table(monkeypatch, costs, expected):
    candidates = [LARGE._replace(stages=n) for n in range(len(costs))]
    monkeypatch.setattr(configs, "_costs", lambda p: costs[p[1].stages])
    found = chosen(candidates, device("H100", 89))
    assert found == candidates[expected]
    # And for what a table does not hold.
    assert chosen(candidates, device("H200"), KEY._replace(chunk=16)) == found


def test_nothing_fits(monkeypatch):
    monkeypatch.setattr(configs, "_costs", lambda program: (0, 0))
    with pytest.raises(devices.Unsupported, match="none of 1 configurations"):
        chosen([LARGE], device("H100", 89))


@pytest.mark.parametrize("kind", recorded.KINDS)
def test_tables_are_complete(kind):
    """So no trace on these devices compiles candidates."""
    assert set(tables.TABLE[kind]) == set(decay.keys(device(kind).arch))
    for key, tiles in tables.TABLE[kind].items():
        assert tiles in decay.CANDIDATES[key.kernel], key


@pytest.mark.parametrize("kernel", ["walk", "channel_keys"])
def test_candidates_compile(kernel):
    """On a GPU of compute capability 8.6, which no table is of."""
    small = device("A100", 86)
    key = configs.Key(kernel, "bf16", 32)
    candidates = decay.CANDIDATES[kernel][-2:]
    found = configs.choose(
        tables.TABLE, key, candidates, probes.program_of, small
    )
    assert found in candidates
    spill, warps = configs._costs(probes.program_of(key, found, 86))
    assert spill == 0 and warps > 0
