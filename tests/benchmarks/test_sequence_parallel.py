"""What a program sends, counted from its HLO; promises, kept and broken."""

import pytest

from benchmarks import _cases
from benchmarks import _hlo
from benchmarks import _promises
from benchmarks import sequence_parallel

LOOP = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %x = f32[2,8]{1,0} get-tuple-element(%p), index=1
  %moved = f32[2,8]{1,0} collective-permute(%x), channel_id=1
  ROOT %t = (s32[], f32[2,8]{1,0}) tuple(%i, %moved)
}

%never (p: f32[4]) -> f32[4] {
  ROOT %m = f32[4]{0} all-reduce(%p), channel_id=9, to_apply=%add
}

ENTRY %main (x: f32[2,8]) -> f32[16,8] {
  %w = (s32[], f32[2,8]{1,0}) while(%init), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %both = (f32[16]{0}, bf16[16]{0}) all-reduce(%u, %v), to_apply=%add, \
metadata={op_name="jit(f)/transpose(jvp())/psum"}
  %s = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), channel_id=3
  ROOT %d = f32[16,8]{1,0} all-gather-done(%s)
}
"""


def test_reader_counts_loops_pairs_and_directions():
    found = sorted(_hlo.collectives(LOOP))
    assert found == [
        ("all-gather", 512, 1, False),
        ("all-reduce", 16 * 4 + 16 * 2, 1, True),
        ("collective-permute", 64, 7, False),
    ]
    assert _hlo.totals(found)["collective-permute"] == (7, 448)
    unknown = LOOP.replace('"known_trip_count":{"n":"7"}', "")
    with pytest.raises(ValueError, match="collective-permute in computation"):
        _hlo.collectives(unknown)
    with pytest.raises(ValueError, match="ENTRY"):
        _hlo.collectives("x = 1")


OPERATOR = "linear_recurrence"  # which compiles in a moment
SIZES = _cases.Sizes(length=128, heads=2, value_dim=8)
STATE, DECAY = 4 * 16, 8 * 16


def test_counts_of_an_operator():
    settings = sequence_parallel.Settings(
        methods=("all_gather",), sizes=SIZES, time=False, memory=False
    )
    (row,) = sequence_parallel.measure(OPERATOR, settings)
    assert row.faults == []
    assert row.forward == {"all-gather": (1, 8 * (STATE + DECAY))}
    assert row.backward == {"all-gather": (1, 8 * STATE)}
    assert row.initial == row.final == {"all-reduce": (1, STATE)}
    assert "1 all-gather 1536 B" in sequence_parallel.line(row)


def test_broken_promises_are_told():
    gather = _hlo.Collective("all-gather", 8 * (STATE + DECAY), 1, False)
    back = _hlo.Collective("all-gather", 8 * STATE, 1, True)
    reduce = _hlo.Collective("all-reduce", STATE, 1, True)
    kept = {
        "both": [gather, back],
        "longer": [gather, back],
        "initial": [gather, back, reduce],
        "final": [gather, back, reduce._replace(backward=False)],
    }

    def faults(**changes):
        return _promises.faults(
            OPERATOR, "all_gather", SIZES, 8, kept | changes
        )

    assert faults() == []
    (fault,) = faults(longer=[gather, back._replace(bytes=9)])
    assert fault.startswith("depends on T") and "1 all-gather 9 B" in fault
    (fault,) = faults(initial=[gather, back])
    assert fault.startswith("initial state") and f"{STATE} B" in fault
    found = faults(both=[gather, back, back], longer=[gather, back, back])
    assert found[0].startswith("backward 2 all-gather")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ops": ("sdd",)}, "ops must be among"),
        ({"methods": ("gather",)}, "got 'gather'"),
        ({"devices": 16}, "from 2 to the 8 that are here, got 16"),
        ({"sizes": SIZES._replace(length=100)}, "multiple of devices = 8"),
        ({"memory_tokens": 0}, "memory_tokens must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(change, part):
    with pytest.raises(ValueError, match=part):
        sequence_parallel.check(sequence_parallel.Settings()._replace(**change))
