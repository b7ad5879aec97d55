"""The command on input that cannot be used: one message, exit code 2."""

import resource
import signal
import subprocess
import sys

import pytest

from tests.experiments import running

pytestmark = pytest.mark.slow


@pytest.fixture(name="command")
def _command(tmp_path):
    text = running.write_text(tmp_path / "text")
    return running.Command(text, tmp_path / "cache")


@pytest.fixture(scope="module")
def import_seconds() -> float:
    """Processor seconds of an interpreter that imports the libraries."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "import flax.linen, grain, optax"], check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--config.model.widht=8"], ["no field 'widht'", "'width'"]),
        (["--config.steps=many"], ["config.steps=many: expected int"]),
        (["--config.steps=-1"], ["steps must be at least 1, got -1"]),
        (["extra"], ["unexpected argument 'extra'"]),
        (["--wokdir=x"], ["wokdir", "workdir"]),
        (["--config=experiments/configs/stdlib_byte.py"], ["stdlib_bytes.py"]),
    ],
)
def test_command_line(command, tmp_path, import_seconds, options, parts):
    # A platform that does not exist: touching a device would fail.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, output = command.run(
        tmp_path / "run", *options, platform="no_such_platform"
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 2, output
    lines = output.strip().splitlines()
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
    # Refused after the imports: processor time, beside that of importing the
    # libraries alone, since machines differ and other tests share this one.
    # Sources without byte code are compiled each time, hence the factor.
    assert after.ru_utime - before.ru_utime < 4 * import_seconds


def test_an_error_in_the_run(command, tmp_path):
    code, output = command.run(
        tmp_path / "run", f"--config.data.path={tmp_path}/nothing*"
    )
    assert code == 2
    assert output.strip().splitlines()[-1].startswith("error: ")
    assert "nothing*" in output
    assert "Traceback" not in output


def test_two_jobs_in_one_workdir(command, tmp_path):
    first = command.start(tmp_path / "run", devices=1)
    try:
        running.wait_until(
            first, lambda: "compiling" in (tmp_path / "run.log").read_text()
        )
        # It keeps the lock, and leaves the processors to the second one.
        first.send_signal(signal.SIGSTOP)
        code, output = command.run(tmp_path / "run", devices=1)
        assert code == 2
        assert f"process {first.pid}" in output
        assert "Traceback" not in output
    finally:
        running.kill(first)
