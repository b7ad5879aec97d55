"""Worker processes change nothing, survive signals and leave no orphans."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from seqjax import data

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A scheduler's SIGTERM comes before the workers have started, then later.
JOB = """
import multiprocessing, os, signal, sys, threading, time
from seqjax import data

def main():
    signals = []
    signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
    config = data.DataConfig(sequence_length=32, batch_size=4, num_workers=2)
    batches = data.make_train_iterator(config)
    term = lambda: os.killpg(os.getpgid(0), signal.SIGTERM)
    threading.Timer(0.2, term).start()
    next(batches)
    term()
    time.sleep(0.2)
    for _ in range(50):
        next(batches)
    children = [p.pid for p in multiprocessing.active_children()]
    print(len(signals), *children, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


def write(path, seed=0):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 9, n) for n in rng.integers(1, 200, 40)]
    data.write_token_file(path, documents, vocab_size=10, end_of_document=9)


@pytest.mark.slow
def test_the_batches_are_those_of_no_workers_and_errors_arrive(tmp_path):
    path = tmp_path / "a.tok"
    write(path)
    config = data.DataConfig(
        source="tokens",
        path=str(path),
        vocab_size=10,
        sequence_length=32,
        batch_size=8,
        validation_fraction=0.0,
        num_workers=2,
    )
    alone = data.make_train_iterator(dataclasses.replace(config, num_workers=0))
    with alone, data.make_train_iterator(config) as batches:
        for _ in range(5):
            next(alone)
        batches.set_state(alone.get_state())
        # An epoch is 16 batches and a part of one.
        for _ in range(40):
            one, other = next(alone), next(batches)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
            assert alone.get_state() == batches.get_state()
    # A worker that cannot read says so, and nothing hangs.
    config = dataclasses.replace(config, num_workers=1)
    with data.make_train_iterator(config) as batches:
        path.unlink()
        with pytest.raises(data.DataError) as error:
            next(batches)
    assert str(error.value) == (
        f"{path}: cannot be read (No such file or directory)"
    )


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or ") Z " not in stat.read_text()


@pytest.mark.slow
def test_signals_to_the_group_and_a_killed_parent(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB)
    job = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        signals, *children = map(int, job.stdout.readline().split())
        assert signals == 2 and len(children) == 2
        assert all(map(alive, children))
        job.kill()
        # Workers leave as soon as they notice, seconds on a busy machine.
        deadline = time.monotonic() + 20
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, children))
    finally:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        job.communicate()
