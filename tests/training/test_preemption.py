"""Signals become a flag; a save in progress is finished."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from seqjax.training import preemption

LOOP = """
import multiprocessing, os, sys, time
from seqjax.training import preemption
with preemption.PreemptionFlag() as flag:
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=time.sleep, args=(2,))
    worker.start()
    print("ready", flush=True)
    while not flag.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        time.sleep(0.01)
    worker.join()
    print(flag.signal_name, worker.exitcode, flush=True)
sys.exit(preemption.EXIT_PREEMPTED)
"""


@pytest.mark.parametrize(
    "number, group", [(signal.SIGTERM, True), (signal.SIGINT, False)]
)
def test_signals_to_a_real_process(number, group):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LOOP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    send = os.killpg if group else os.kill
    assert process.stdout.readline() == "ready\n"
    send(process.pid, number)
    assert process.stdout.readline() == "saving\n"
    for again in (signal.SIGTERM, signal.SIGINT):
        send(process.pid, again)
    out, err = process.communicate(timeout=30)
    name = signal.Signals(number).name
    assert out == f"{name} 0\n"
    assert process.returncode == preemption.EXIT_PREEMPTED == 75
    lines = err.splitlines()
    assert lines[0].startswith(f"{name}: finishing what is begun and saving")
    assert "code 75" in lines[0] and len(lines) <= 3


def test_handlers_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyError):
        with preemption.PreemptionFlag() as flag:
            assert not flag.requested and flag.signal_name is None
            assert not flag.agreed()
            os.kill(os.getpid(), signal.SIGTERM)
            assert flag.requested and flag.signal_name == "SIGTERM"
            assert flag.agreed()
            raise KeyError
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert after == before
    assert flag.requested


def test_only_in_the_main_thread():
    caught = []

    def enter():
        try:
            with preemption.PreemptionFlag():
                pass
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=enter, name="side")
    thread.start()
    thread.join()
    assert "must be entered in the main thread" in caught[0]
    assert "'side'" in caught[0]
