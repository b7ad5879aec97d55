"""Starts the real training command, on any number of simulated devices."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from tests import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATHS = (str(ROOT), str(ROOT / "kernels"))
CONFIG = "tests/training/tiny.py"
WORDS = ("def", "return", "self", "x", "y", "=", "import", "for", "in")
SECONDS = 240  # no run here takes a tenth of it on an idle machine


def write_text(folder):
    """A few files of words in random order, as --config.data.path."""
    folder.mkdir()
    for i in range(8):
        rng = random.Random(i)
        words = (rng.choice(WORDS) for _ in range(300))
        (folder / f"{i}.txt").write_text(" ".join(words))
    return f"{folder}/*.txt"


def _inherited():
    return filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


class Command:
    """What stays the same between the runs of a test."""

    def __init__(self, text, cache, *options):
        self.text, self.cache, self.options = text, cache, options

    def start(self, workdir, *options, devices=8, platform="cpu", log=""):
        """A running process; its output goes to WORKDIR.log, or to log."""
        environment = os.environ | {
            "JAX_PLATFORMS": platform,
            "XLA_FLAGS": xla_flags.flags(devices),
            "PYTHONPATH": os.pathsep.join([*PATHS, *_inherited()]),
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        if self.cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.cache)
        command = [sys.executable, "-m", "experiments.train"]
        command += [f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.data.path={self.text}"]
        with open(log or f"{workdir}.log", "ab") as output:
            return subprocess.Popen(
                [*command, *self.options, *options],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, workdir, *options, **settings):
        """Runs to the end; the exit code and everything it printed."""
        log = pathlib.Path(f"{workdir}.log")
        before = log.stat().st_size if log.exists() else 0
        code = self.start(workdir, *options, **settings).wait(SECONDS)
        return code, log.read_bytes()[before:].decode(errors="replace")


def rows_in(workdir):
    """Number of rows of metrics.jsonl so far."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(process, condition):
    """Polls until the condition holds or the process has ended."""
    end = time.monotonic() + SECONDS
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def kill(process):
    """SIGKILL to the process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(SECONDS)
