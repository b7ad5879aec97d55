"""A configuration from the table, the nearest one, or the best that fits."""

import math

import jax
import pytest

from seqjax_kernels import _direct
from seqjax_kernels import configs
from seqjax_kernels import devices
from seqjax_kernels import registry
from seqjax_kernels import resources
from seqjax_kernels.pointwise import norm_kernels

KEY = configs.Key("forward", "bfloat16", 128, 128, 64, 4096)
TABLE = {"H200": {KEY: "tuned", KEY._replace(length=65536): "long"}}


def program(rows, arch):
    """The norm's kernel with so many rows a program: 16384 cells spill."""
    return _direct.Program(
        norm_kernels.forward_kernel,
        tuple((n, "bfloat16") for n in ("x", "gate", "weight", "y")),
        (
            ("R", 4096),
            ("N", 1024),
            ("GROUPS", 1),
            ("EPS", 1e-5),
            ("SILU", True),
            ("BEFORE", False),
            ("BR", rows),
            ("BN", 1024),
        ),
        4,
        2,
        arch,
    )


def chosen(key, candidates, kind="H200", rows=lambda c: c):
    with jax.sharding.use_abstract_mesh(registry.abstract_gpu(kind)):
        return configs.choose(
            TABLE,
            key,
            candidates,
            lambda c, arch: program(rows(c), arch),
            lambda c: 4096 // c,
        )


def test_the_table_comes_first():
    # None of these would compile.
    assert chosen(KEY, ["worse"]) == "tuned"
    assert chosen(KEY._replace(heads=16), ["worse"]) == "tuned"
    assert chosen(KEY._replace(length=40000), ["worse"]) == "long"


def test_nearest():
    table = TABLE["H200"]
    for key, expected in (
        (KEY._replace(length=1024), "tuned"),
        (KEY._replace(length=1023), None),
        (KEY._replace(heads=257), None),
        (KEY._replace(key=64), None),
        (KEY._replace(dtype="float32"), None),
        (KEY._replace(length=16384), "tuned"),
        (KEY._replace(length=16385), "long"),
    ):
        assert configs.nearest(table, key) == expected, key


def test_what_spills_is_not_chosen():
    other = KEY._replace(key=64)
    assert chosen(other, [16, 2]) == 2
    assert chosen(other, [2, 16], "A100") == 2
    assert resources.of(program(16, 90)).spill > 0
    with pytest.raises(devices.Unsupported, match="none of 1 configurations"):
        chosen(other, [16])


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # registers, spill, shared, warps and blocks: fewer, fuller programs
        ((64, 0, 0, 4, 1056), (255, 0, 0, 4, 1056)),
        # work for all multiprocessors beats large programs for a few
        ((64, 0, 0, 4, 132), (64, 0, 0, 4, 33)),
        # shared memory for two at once beats that for one
        ((128, 0, 100_000, 4, 264), (128, 0, 200_000, 4, 264)),
        ((255, 0, 0, 4, 132), (64, 4, 0, 4, 132)),
    ],
)
def test_cost(better, worse):
    costs = [
        configs.cost(
            resources.Resources(*case[:4], 0, 0),
            90,
            case[4],
            multiprocessors=132,
        )
        for case in (better, worse)
    ]
    assert costs[0] <= costs[1] and costs[0] < math.inf
