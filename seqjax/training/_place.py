"""Which process of which job this is, told from flags and environment."""

from collections.abc import Mapping
import os
import re
from typing import NamedTuple

from seqjax.training import flags

MODES = ("auto", "off", "env", "slurm")
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
)


class Settings(NamedTuple):
    """The flags of the same names; None is not given."""

    distributed: str = "auto"
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    expected_devices: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 100


class Place(NamedTuple):
    """A process in its job, and where the first process listens."""

    coordinator_address: str
    num_processes: int
    process_id: int


def find(
    given: Settings, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """This process's place in its job, None for one process alone.

    Raises:
      ConfigError: values that are missing, contradictory or impossible.
    """
    for name in ("initialization_timeout", "heartbeat_timeout"):
        if getattr(given, name) < 1:
            raise flags.ConfigError(
                f"--{name} must be at least 1 second, got "
                f"{getattr(given, name)}"
            )
    if given.expected_devices is not None and given.expected_devices < 1:
        raise flags.ConfigError(
            f"--expected_devices must be at least 1, got "
            f"{given.expected_devices}"
        )
    explicit = [n for n in _VARIABLES if getattr(given, n) is not None]
    if given.distributed == "off":
        if explicit:
            raise flags.ConfigError(
                f"--distributed=off starts one process alone, but "
                f"{_listed(explicit)} was given; leave one of the two out"
            )
        return None
    set_here = [n for n, v in _VARIABLES.items() if environment.get(v)]
    known = {*explicit, *set_here}
    if given.distributed == "slurm":
        return _in_slurm(given, environment)
    if given.distributed == "auto":
        numbered = known & {"num_processes", "process_id"}
        if not numbered and int(_step_tasks(environment)) > 1:
            return _in_slurm(given, environment)
        if not known:
            return None
    return _from_values(given, environment)


def _step_tasks(environment: Mapping[str, str]) -> str:
    """Tasks of the Slurm step; "0" outside of one, as in a batch script."""
    text = environment.get("SLURM_STEP_NUM_TASKS", "0")
    return text if text.isdecimal() else "0"


def _listed(names: list[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def _from_values(given: Settings, environment: Mapping[str, str]) -> Place:
    texts = {}
    for name, variable in _VARIABLES.items():
        value = getattr(given, name)
        texts[name] = (
            (f"--{name}", str(value))
            if value is not None
            else (variable, environment.get(variable, ""))
        )
    missing = [name for name, (_, text) in texts.items() if not text]
    if missing:
        have = [origin for origin, text in texts.values() if text]
        wanted = " and ".join(f"--{n} (or {_VARIABLES[n]})" for n in missing)
        way = "--distributed=env" if not have else " and ".join(have)
        raise flags.ConfigError(
            f"{way} needs {wanted} as well: a job of many processes has an "
            f"address, a number of processes and an id in each of them; give "
            f"all three, or --distributed=off for one process alone"
        )
    numbers = {}
    for name in ("num_processes", "process_id"):
        origin, text = texts[name]
        if not re.fullmatch(r"-?\d+", text.strip()):
            raise flags.ConfigError(
                f"{origin} must be an integer, got {text!r}"
            )
        numbers[name] = int(text)
    return _checked(Place(texts["coordinator_address"][1], **numbers))


def _in_slurm(given: Settings, environment: Mapping[str, str]) -> Place:
    for name in ("num_processes", "process_id"):
        if getattr(given, name) is not None:
            raise flags.ConfigError(
                f"--distributed=slurm takes {name} from the step, but --{name}="
                f"{getattr(given, name)} was given; leave it out, or give all "
                f"of {_listed(list(_VARIABLES))} with --distributed=env"
            )
    missing = [name for name in _SLURM if not environment.get(name)]
    if missing:
        raise flags.ConfigError(
            f"--distributed=slurm, but {', '.join(missing)} is not set: start "
            f"the command with srun, inside sbatch or salloc"
        )
    job, step, nodes, tasks, process = (environment[n] for n in _SLURM)
    address = given.coordinator_address or environment.get(
        _VARIABLES["coordinator_address"]
    )
    if not address:
        # One port a step, below those that the system gives out itself.
        port = 20000 + (16 * int(job) + int(step)) % 10000
        address = f"{first_host(nodes)}:{port}"
    return _checked(Place(address, int(tasks), int(process)))


def first_host(nodelist: str) -> str:
    """The first of Slurm's "n[001-003,7],m1" and the like: "n001"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodelist)


def _checked(found: Place) -> Place:
    address, count, index = found
    if count < 1 or not 0 <= index < count:
        raise flags.ConfigError(
            f"process_id must be from 0 to num_processes - 1, got process_id "
            f"{index} of num_processes {count}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise flags.ConfigError(
            f"coordinator_address must be HOST:PORT, such as node1:12345, got "
            f"{address!r}"
        )
    return found
