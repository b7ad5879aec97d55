"""Two real processes on this machine train as one; what fails says why."""

import contextlib
import pathlib
import re
import signal
import socket
import struct
import time

import numpy as np
import pytest

from experiments import train
from seqjax import data
from seqjax.training import _lifeline
from seqjax.training import metrics
from seqjax.training import preemption
from tests.experiments import running

STEPS = 12
OPTIONS = (
    "--config.data.source=tokens",  # no sample to compile
    "--config.model.pattern=simple_gla",  # a third less to compile
    "--config.mesh.fsdp=2",
    "--config.mesh.seq=2",
    f"--config.steps={STEPS}",
    "--config.eval_every=5",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    rng = np.random.default_rng(0)
    documents = rng.integers(1, 4, (64, 150)).cumsum(1) % 255
    data.write_token_file(
        folder / "tokens", documents, vocab_size=256, end_of_document=255
    )
    return running.Command(folder / "tokens", folder / "cache", *OPTIONS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Job:
    """Two processes of four devices each, started as two machines would."""

    def __init__(self, command, workdir, *options, second=()):
        address = f"--coordinator_address=localhost:{free_port()}"
        self.workdir = workdir
        self.logs = [pathlib.Path(f"{workdir}.{i}.log") for i in range(2)]
        self._before = [
            log.stat().st_size if log.exists() else 0 for log in self.logs
        ]
        self.processes = [
            command.start(
                workdir,
                address,
                "--num_processes=2",
                f"--process_id={i}",
                "--heartbeat_timeout=10",
                "--initialization_timeout=60",
                *options,
                *(second if i else ()),
                devices=4,
                log=log,
            )
            for i, log in enumerate(self.logs)
        ]

    def outputs(self):
        """What each has printed."""
        return [
            log.read_bytes()[size:].decode(errors="replace")
            for log, size in zip(self.logs, self._before, strict=True)
        ]

    def wait(self):
        """The exit codes."""
        return [p.wait(running.SECONDS) for p in self.processes]

    def rows(self, count):
        """Waits for so many rows of metrics.jsonl."""
        running.wait_until(
            self.processes[0], lambda: running.rows_in(self.workdir) >= count
        )


@contextlib.contextmanager
def job(*arguments, **options):
    """A job of which nothing is left behind, whatever the test meets."""
    started = Job(*arguments, **options)
    try:
        yield started
    finally:
        for process in started.processes:
            running.kill(process)


@pytest.fixture(scope="module")
def single(command, tmp_path_factory):
    """The rows of one process with all eight devices."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    code, output = command.run(workdir)
    assert code == 0, output
    return metrics.read_rows(workdir / "metrics.jsonl")


def assert_same(workdir, expected):
    got = metrics.read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            # Adam's first steps look at signs: from the second step on what
            # rounding makes of gradients that cancel is magnified.
            if name != "grad_norm" or ours["step"] <= 2:
                np.testing.assert_allclose(value, theirs[name], 1e-5)


@pytest.mark.slow
def test_two_train_as_one_and_resume_each_other(command, single, tmp_path):
    workdir = tmp_path / "run"
    with job(command, workdir) as two:
        two.rows(3)
        two.processes[1].send_signal(signal.SIGTERM)
        codes, outputs = two.wait(), two.outputs()
    assert codes == [preemption.EXIT_PREEMPTED] * 2, outputs
    saved = r"stopped by a signal to another process, saved after step (\d+);"
    first = int(re.search(saved, outputs[0])[1])
    assert 3 <= first < STEPS - 3
    # By one process, to another step.
    one = command.start(workdir)
    running.wait_until(one, lambda: running.rows_in(workdir) > first)
    one.send_signal(signal.SIGTERM)
    assert one.wait(running.SECONDS) == preemption.EXIT_PREEMPTED
    log = (tmp_path / "run.log").read_text()
    assert f"resuming after step {first}" in log
    second = int(re.search(r"SIGTERM, saved after step (\d+);", log)[1])
    assert first < second < STEPS
    # And by two again, to the end.
    with job(command, workdir, "--expected_devices=8") as two:
        codes, outputs = two.wait(), two.outputs()
    assert codes == [train.EXIT_DONE] * 2, outputs
    assert f"resuming after step {second}" in outputs[0]
    assert "8 x cpu" in outputs[0]
    assert_same(workdir, single)
    # The first process alone writes and shows.
    last = outputs[0].splitlines()[-1]
    assert last.startswith("validation bits/token: ")
    assert (workdir / "report.html").exists()
    assert "step " not in outputs[1] and "validation" not in outputs[1]
    assert "Traceback" not in outputs[0] + outputs[1]
    assert not list(workdir.glob("*.tmp"))
    # Bad input is refused by both, and neither takes the other for dead.
    with job(command, workdir, "--config.seed=5") as two:
        codes, outputs = two.wait(), two.outputs()
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "belongs to a run with another configuration" in output
        assert "has died" not in output


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_death_ends_the_other(command, tmp_path, victim):
    workdir = tmp_path / "run"
    # Of what they train the test knows nothing: a model that compiles soon.
    options = (
        "--config.steps=100000",
        "--config.model.pattern=attention",
        "--config.mesh.seq=1",
    )
    with job(command, workdir, *options) as two:
        two.rows(2)
        two.processes[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        code = two.processes[1 - victim].wait(60)
        seconds = time.monotonic() - begin
        output = two.outputs()[1 - victim]
    assert seconds < 30
    told = f"process {victim} of 2 has died: look at its output"
    if victim == 0 and told not in output:
        # Where the coordinator dies, JAX may be the first to end the other.
        assert code in (train.EXIT_PROCESS_LOST, -signal.SIGABRT), output
        assert "that another task died" in output or "has ended" in output
    else:
        assert code == train.EXIT_PROCESS_LOST, output


def test_strangers_are_no_processes():
    """Only who knows the token is one, and only as itself."""
    died = []
    first = _lifeline.Lifeline(0, died.append)
    port, token = first.listen(1)

    def connect(data):
        link = socket.create_connection(("localhost", port))
        link.sendall(data)
        return link

    closed = [
        connect(b"GET / HTTP/1.1\r\n\r\n"),
        connect(struct.pack("!Qi", token ^ 1, 1)),
        connect(struct.pack("!Qi", token, 7)),
    ]
    for link in closed:
        with link:
            link.settimeout(10)
            try:
                assert link.recv(1) == b""
            except ConnectionResetError:
                pass  # closed with bytes unread
    _lifeline.Lifeline(1, died.append).connect("localhost", port, token)
    assert not died


@pytest.mark.slow
def test_processes_that_differ(command, tmp_path):
    """Both refuse with code 2, before a step; all jobs at once."""
    cases = {
        "folder": (
            f"--workdir={tmp_path}/elsewhere",
            ["must be one folder for all processes", "processes 1 do not"],
        ),
        "rate": (
            "--config.optimizer.learning_rate=0.5",
            ["process 1: config.optimizer.learning_rate is 0.5, not "],
        ),
        "count": (
            "--num_processes=3",
            ["2 have joined, which were given 2, 3", "--num_processes"],
        ),
    }
    with contextlib.ExitStack() as stack:
        jobs = {
            name: stack.enter_context(
                job(command, tmp_path / name, second=(option,))
            )
            for name, (option, _) in cases.items()
        }
        for name, (_, parts) in cases.items():
            codes, outputs = jobs[name].wait(), jobs[name].outputs()
            assert codes == [2, 2], (name, outputs)
            for output in outputs:
                assert "Traceback" not in output and "step " not in output
                for part in parts:
                    assert part in output, output


@pytest.mark.slow
def test_starts_that_fail(command, tmp_path):
    """Each with one message and code 2; all at once, since they wait."""
    taken = socket.socket()
    taken.bind(("", 0))
    taken.listen()
    nowhere = f"--coordinator_address=localhost:{free_port()}"
    alone = ("--num_processes=2", "--initialization_timeout=8")
    cases = {
        "unreachable": (
            (nowhere, *alone, "--process_id=1"),
            ["process 1 of 2 cannot reach process 0 at localhost:", "8 s"],
        ),
        "nobody": (
            (
                f"--coordinator_address=localhost:{free_port()}",
                *alone,
                "--process_id=0",
            ),
            ["the 2 processes did not all meet", "within 8 s"],
        ),
        "port": (
            (
                f"--coordinator_address=localhost:{taken.getsockname()[1]}",
                *alone,
                "--process_id=0",
            ),
            ["cannot listen on port", "take another port"],
        ),
        "devices": (
            ("--expected_devices=16",),
            ["--expected_devices=16, but the job has 8 devices (cpu) in 1"],
        ),
    }
    started = {
        name: command.start(tmp_path / name, *options)
        for name, (options, _) in cases.items()
    }
    try:
        for name, (_, parts) in cases.items():
            code = started[name].wait(running.SECONDS)
            output = (tmp_path / f"{name}.log").read_text()
            assert code == 2, (name, output)
            last = output.strip().splitlines()[-1]
            assert last.startswith("error: "), output
            for part in parts:
                assert part in last
            assert "Traceback" not in output
            assert not (tmp_path / name).exists()
    finally:
        taken.close()
        for process in started.values():
            running.kill(process)
