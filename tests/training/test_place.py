"""Which process of which job: from flags, variables, or a Slurm step."""

import pytest

from seqjax.training import _place
from seqjax.training import flags

STEP = {
    "SLURM_JOB_ID": "7001",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[012-014,20],login1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "job-0.pods:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
FLAGS = dict(coordinator_address="a:1", num_processes=3, process_id=0)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, None),
        ({}, STEP, ("gpu012:22018", 4, 3)),
        ({}, STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        # A batch script, outside of any step of its own.
        ({}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({}, VARIABLES, ("job-0.pods:1234", 2, 1)),
        ({}, VARIABLES | STEP, ("job-0.pods:1234", 2, 1)),
        (FLAGS, VARIABLES | STEP, ("a:1", 3, 0)),
        ({"process_id": 0}, VARIABLES, ("job-0.pods:1234", 2, 0)),
        ({"coordinator_address": "[::1]:9"}, STEP, ("[::1]:9", 4, 3)),
        ({"distributed": "off"}, STEP | VARIABLES, None),
        ({"distributed": "env"}, STEP | VARIABLES, ("job-0.pods:1234", 2, 1)),
        ({"distributed": "slurm"}, STEP, ("gpu012:22018", 4, 3)),
        (
            {"distributed": "slurm"},
            STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            ("gpu012:22018", 1, 0),
        ),
    ],
)
def test_place(given, environment, expected):
    assert _place.find(_place.Settings(**given), environment) == expected


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3]", "n1"),
        ("n[007,9]-ib,m", "n007-ib"),
        ("rack[2-3]node[05-06]", "rack2node05"),
    ],
)
def test_first_host(nodes, host):
    assert _place.first_host(nodes) == host


@pytest.mark.parametrize(
    ("given", "environment", "parts"),
    [
        (
            {"num_processes": 2},
            {},
            ["--num_processes needs", "JAX_COORDINATOR_ADDRESS", "process_id"],
        ),
        (
            {},
            {"JAX_COORDINATOR_ADDRESS": "a:1"},
            ["JAX_COORDINATOR_ADDRESS needs", "--num_processes", "=off"],
        ),
        (
            {"distributed": "env"},
            {"JAX_PROCESS_ID": "0"},
            ["JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS"],
        ),
        (
            {"distributed": "env"},
            VARIABLES | {"JAX_PROCESS_ID": "two"},
            ["JAX_PROCESS_ID must be an integer, got 'two'"],
        ),
        (
            {"distributed": "slurm"},
            {"SLURM_JOB_ID": "1"},
            ["SLURM_STEP_NODELIST", "SLURM_PROCID", "srun"],
        ),
        (
            {"distributed": "slurm", "process_id": 1},
            STEP,
            ["--process_id=1", "leave it out"],
        ),
        (
            {"distributed": "off", "process_id": 1},
            {},
            ["--distributed=off", "--process_id"],
        ),
        (FLAGS | {"process_id": 3}, {}, ["got process_id 3 of", "3"]),
        (FLAGS | {"num_processes": 0}, {}, ["num_processes 0"]),
        (
            FLAGS | {"coordinator_address": "node1"},
            {},
            ["HOST:PORT", "got 'node1'"],
        ),
        (
            FLAGS | {"coordinator_address": "node1:70000"},
            {},
            ["'node1:70000'"],
        ),
        ({"heartbeat_timeout": 0}, {}, ["--heartbeat_timeout", "got 0"]),
        ({"expected_devices": 0}, {}, ["--expected_devices", "got 0"]),
    ],
)
def test_a_place_that_makes_no_sense(given, environment, parts):
    with pytest.raises(flags.ConfigError) as raised:
        _place.find(_place.Settings(**given), environment)
    for part in parts:
        assert part in str(raised.value)
