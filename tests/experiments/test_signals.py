"""SIGTERM and SIGINT outside of the training steps: code 75, nothing lost."""

import pathlib
import signal

import pytest

from experiments import train
from seqjax.training import preemption
from tests.experiments import running

pytestmark = pytest.mark.slow


def catches(process, number):
    """Whether the process has a handler for the signal (Linux says)."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    caught = next(x for x in status.splitlines() if x.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (number - 1) & 1


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="needs /proc"
)
def test_in_the_imports_and_before_the_report(tmp_path):
    text = running.write_text(tmp_path / "text")
    options = ("--config.model.pattern=attention", "--config.steps=4")
    command = running.Command(text, tmp_path / "cache", *options)
    workdir, log = tmp_path / "run", tmp_path / "run.log"

    def stopped(number, reached):
        process = command.start(workdir, devices=1)
        running.wait_until(process, lambda: reached(process))
        process.send_signal(number)
        code = process.wait(running.SECONDS)
        output = log.read_text()
        assert code == preemption.EXIT_PREEMPTED, output
        assert "Traceback" not in output
        return output

    # JAX is not yet imported when the handler is there.
    output = stopped(signal.SIGINT, lambda p: catches(p, signal.SIGTERM))
    assert "SIGINT: finishing what is begun" in output
    assert "compiled the train step" not in output
    # While the n-grams are counted and the sample is generated.
    output = stopped(
        signal.SIGTERM, lambda p: "step 4/4  validation" in log.read_text()
    )
    assert "the same command writes the report" in output
    assert not (workdir / "summary.json").exists()
    rows = (workdir / "metrics.jsonl").read_bytes()
    # The next start does the rest, the one after it nothing but a lost report.
    code, output = command.run(workdir, devices=1)
    assert code == train.EXIT_DONE, output
    assert "compiling the train step" not in output
    last = output.splitlines()[-1]
    assert last.startswith("validation bits/byte: ")
    (workdir / "report.html").unlink()
    code, output = command.run(workdir, devices=1)
    assert code == train.EXIT_DONE and output.splitlines()[-1] == last
    assert (workdir / "report.html").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == rows
