"""One job of many processes: who they are, and JAX's runtime between them.

    --distributed=auto    explicit flags, else JAX_* variables, else a Slurm
                          step of several tasks, else one process (default)
    --distributed=off     one process, whatever the surroundings say
    --distributed=env     JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
                          JAX_PROCESS_ID; a flag goes before its variable
    --distributed=slurm   the step's tasks, as srun numbers them

What decides is in flags and environment alone: a single process touches no
network and waits for nothing.  Start one process for all devices of a machine.
"""

from collections.abc import Callable
import os
import socket
import sys
import threading
import time
from typing import Any

from absl import flags as absl_flags
import jax
from jax.experimental import multihost_utils
import numpy as np

from seqjax.training import _lifeline
from seqjax.training import _place
from seqjax.training import _processes
from seqjax.training import background
from seqjax.training import flags

_SECONDS_TO_LEAVE = 5
# JAX's own deadlines end the process with a stack trace of C++; they come
# after those here, which end it with a message.
_LATER = 60

# The connection to the others, once there is one.
_lines: list[_lifeline.Lifeline] = []
# The place of this process: once it tries to join its job, and once it has.
_begun: list[_place.Place] = []
_joined: list[_place.Place] = []


def define_flags() -> None:
    """The absl flags of a start; ``settings`` reads them."""
    default = _place.Settings()
    absl_flags.DEFINE_enum(
        "distributed",
        default.distributed,
        _place.MODES,
        "Who the processes are.",
    )
    absl_flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0."
    )
    absl_flags.DEFINE_integer("num_processes", None, "Of the job.")
    absl_flags.DEFINE_integer("process_id", None, "From 0.")
    absl_flags.DEFINE_integer(
        "expected_devices", None, "Refuse to run on any other number, in all."
    )
    absl_flags.DEFINE_integer(
        "initialization_timeout",
        default.initialization_timeout,
        "Seconds in which all processes must have come.",
    )
    absl_flags.DEFINE_integer(
        "heartbeat_timeout",
        default.heartbeat_timeout,
        "Seconds without a sign of life after which a process counts as dead.",
    )


def settings() -> _place.Settings:
    """The flags of this command line."""
    values: dict[str, Any] = {
        name: absl_flags.FLAGS[name].value for name in _place.Settings._fields
    }
    return _place.Settings(**values)


def start(given: _place.Settings, stop: Callable[[], bool]) -> None:
    """Joins the job that flags and environment name, if they name one.

    Call it before JAX touches a device.

    Args:
      given: of the command line.
      stop: polled while the others are awaited.

    Raises:
      ConfigError: values that are missing or contradictory, a coordinator that
        cannot be reached, processes that have not come in time.
      PreemptedError: ``stop`` came true.
    """
    here = _place.find(given)
    if here is None:
        return
    _require_port(here)
    _begun.append(here)
    # The service would catch SIGTERM in place of PreemptionFlag.
    jax.config.update("jax_enable_preemption_service", False)
    timeout = given.initialization_timeout
    job = background.Job(
        lambda: jax.distributed.initialize(
            here.coordinator_address,
            here.num_processes,
            here.process_id,
            # All devices that this process sees are its own.
            cluster_detection_method="deactivate",
            initialization_timeout=timeout + _LATER,
            heartbeat_timeout_seconds=given.heartbeat_timeout,
            # The first process writes the report while the others wait.
            shutdown_timeout_seconds=24 * 3600,
        )
    )
    begin = time.monotonic()
    said = False

    def tell() -> None:
        nonlocal said
        seconds = time.monotonic() - begin
        if seconds > timeout:
            raise flags.ConfigError(_nobody(here, timeout))
        if seconds > 5 and not said:
            said = True
            _say(f"{_who(here)}: waiting for the others, at most {timeout} s")

    try:
        job.wait(stop, tell)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, flags.ConfigError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise flags.ConfigError(
            f"{_who(here)}: JAX's distributed runtime did not start: {reason}"
        ) from error
    _joined.append(here)
    _say(
        f"{_who(here)} has joined; if one dies, the others end within about "
        f"{given.heartbeat_timeout} s"
    )


def _say(text: str) -> None:
    # Each process for itself, and without asking JAX which one it is.
    print(text, flush=True)


def _who(here: _place.Place) -> str:
    return f"process {here.process_id} of {here.num_processes}"


def _require_port(here: _place.Place) -> None:
    """The coordinator's port is free, where this process will listen."""
    port = int(here.coordinator_address.rpartition(":")[2])
    if here.process_id:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise flags.ConfigError(
                f"{_who(here)} cannot listen on port {port} of "
                f"coordinator_address {here.coordinator_address} "
                f"({error.strerror}); take another port in every process"
            ) from None


def _nobody(here: _place.Place, timeout: int) -> str:
    """What to do about processes that have not met in time."""
    address = here.coordinator_address
    reason = _unreachable(address) if here.process_id else None
    if reason is not None:
        return (
            f"{_who(here)} cannot reach process 0 at {address} within "
            f"{timeout} s ({reason}); check that process 0 runs, that the "
            f"host name means its machine here, and that no firewall closes "
            f"the port, or raise --initialization_timeout"
        )
    return (
        f"{_who(here)}: the {here.num_processes} processes did not all meet "
        f"at {address} within {timeout} s; look at the output of the others, "
        f"start each process_id from 0 to {here.num_processes - 1} once, with "
        f"the same address and num_processes, or raise "
        f"--initialization_timeout"
    )


def _unreachable(address: str) -> str | None:
    """Why no connection is made, None if one is."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 3).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_devices(expected: int | None) -> None:
    """Raises ConfigError unless the job has the devices it should have.

    Args:
      expected: in all processes together; None: any number, the same in each.
    """
    _require_same_count()
    counts = [0] * jax.process_count()
    for device in jax.devices():
        counts[device.process_index] += 1
    total, kind = sum(counts), jax.devices()[0].device_kind
    each = " + ".join(map(str, counts))
    found = f"{total} devices ({kind}) in {len(counts)} processes"
    if len(counts) > 1:
        found += f" ({each})"
    if expected is not None and total != expected:
        raise flags.ConfigError(
            f"--expected_devices={expected}, but the job has {found}; start "
            f"one process for all devices of a machine, let it see them "
            f"(CUDA_VISIBLE_DEVICES, --gpus-per-node), give it --distributed, "
            f"or set --expected_devices={total}"
        )
    if len(set(counts)) > 1:
        raise flags.ConfigError(
            f"every process must have as many devices as the others, but the "
            f"job has {found}; hide the others with CUDA_VISIBLE_DEVICES, or "
            f"leave machines with fewer out"
        )


def _require_same_count() -> None:
    """The processes agree on how many they are; JAX believes process 0."""
    if not _joined:
        return
    found = _processes.gather_json({"of": _joined[0].num_processes})
    said = [each["of"] for each in found]
    if set(said) != {len(said)}:
        raise flags.ConfigError(
            f"num_processes must be the same in every process, and as many as "
            f"there are: {len(said)} have joined, which were given "
            f"{', '.join(map(str, said))}, in order of process_id; start all "
            f"of them again with --num_processes (or JAX_NUM_PROCESSES) of "
            f"the whole job"
        )


def watch(exit_code: int) -> None:
    """Ends this process as soon as another one of its job has died.

    Call it in all processes, once their devices are there; does nothing for
    one process alone.

    Args:
      exit_code: with which to end.
    """
    if not _joined:
        return
    (here,) = _joined

    def died(who: int) -> None:
        flags.tell(
            f"process {who} of {jax.process_count()} has died: look at its "
            f"output, then start the same command again in all; it goes on "
            f"from the newest checkpoint"
        )
        sys.stdout.flush()
        os._exit(exit_code)

    line = _lifeline.Lifeline(jax.process_index(), died)
    port, token = 0, 0
    if jax.process_index() == 0:
        port, token = line.listen(jax.process_count() - 1)
    sent = np.array([port, token >> 32, token & 0xFFFFFFFF], np.uint32)
    came = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    port = int(came[0])
    token = int(came[1]) << 32 | int(came[2])
    if jax.process_index():
        host = here.coordinator_address.rpartition(":")[0].strip("[]")
        try:
            line.connect(host, port, token)
        except OSError as error:
            _say(
                f"{_who(here)} cannot connect to port {port} of {host} "
                f"({error.strerror or error}): the death of a process will be "
                f"noticed by its heartbeats only"
            )
            return
    _lines.append(line)


def many() -> bool:
    """Whether this process belongs to a job, or has tried to join one."""
    return bool(_begun)


def died(error: Exception) -> str:
    """What to tell about an error of a computation that has lost a process."""
    first = str(error).strip().splitlines()[0]
    return (
        f"process {jax.process_index()} of {jax.process_count()}: a "
        f"computation of all processes failed ({first}). Most likely another "
        f"process has ended: look at the output of the others, then start the "
        f"same command again in all; it goes on from the newest checkpoint"
    )


def leave(wait: bool) -> None:
    """Tells the others that this process means to end.

    JAX waits for all processes before it lets one end.  One that fails alone
    must not: the others wait for it in a collective, and what they can be told
    is that it has died.

    Args:
      wait: whether this may be such a failure.  The others are then awaited
        here, for some seconds; else by JAX, until all end.
    """
    if not _joined:
        return
    if wait:
        done = threading.Event()

        def shut_down() -> None:
            jax.distributed.shutdown()
            done.set()

        threading.Thread(target=shut_down, daemon=True).start()
        if not done.wait(_SECONDS_TO_LEAVE):
            return
    for line in _lines:
        line.end()
