"""The workdir's lock between real processes, and its configuration."""

import errno
import fcntl
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from seqjax.training import binding
from seqjax.training import workdir

HOLD = """
import multiprocessing, sys, time
from seqjax.training import binding
from seqjax.training import workdir
with workdir.WorkdirLock(sys.argv[1]):
    if sys.argv[2] == "worker":
        context = multiprocessing.get_context("fork")
        worker = context.Process(target=time.sleep, args=(60,))
        worker.start()
        print(worker.pid, flush=True)
    else:
        print("held", flush=True)
    time.sleep(60)
"""


class Owner:
    """Another process that holds the lock."""

    def __init__(self, path, kind="alone"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), kind],
            stdout=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
        )
        self.line = self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class TestLock:
    def test_second_job_refuses_and_names_the_first(self, tmp_path):
        owner = Owner(tmp_path)
        try:
            with pytest.raises(workdir.WorkdirLocked) as caught:
                with workdir.WorkdirLock(tmp_path):
                    pass
        finally:
            owner.kill()
        text = str(caught.value)
        assert f"process {owner.process.pid} on host" in text
        assert socket.gethostname() in text and str(tmp_path) in text
        assert "another workdir" in text

    def test_taken_over_after_sigkill(self, tmp_path, caplog):
        owner = Owner(tmp_path)
        owner.kill()
        with workdir.WorkdirLock(tmp_path):
            text = json.loads((tmp_path / "lock").read_text())
            assert text["pid"] == os.getpid()
        assert f"left by process {owner.process.pid}" in caplog.text
        with workdir.WorkdirLock(tmp_path):
            pass
        assert caplog.text.count("left by process") == 1

    def test_workers_that_outlive_the_owner_do_not_hold_it(self, tmp_path):
        owner = Owner(tmp_path, "worker")
        owner.kill()
        try:
            os.kill(int(owner.line), 0)
            with workdir.WorkdirLock(tmp_path):
                pass
        finally:
            os.kill(int(owner.line), signal.SIGKILL)

    def test_twice_in_one_process(self, tmp_path):
        with workdir.WorkdirLock(tmp_path):
            with pytest.raises(workdir.WorkdirLocked, match="this process"):
                with workdir.WorkdirLock(tmp_path / ".." / tmp_path.name):
                    pass
            with pytest.raises(workdir.WorkdirLocked):
                with workdir.WorkdirLock(tmp_path):
                    pass
        with workdir.WorkdirLock(tmp_path):
            pass

    def test_freed_after_an_error(self, tmp_path):
        with pytest.raises(KeyError):
            with workdir.WorkdirLock(tmp_path / "new"):
                raise KeyError
        with workdir.WorkdirLock(tmp_path / "new"):
            pass

    def test_unreadable_owner(self, tmp_path):
        (tmp_path / "lock").write_text("garbage")
        with workdir.WorkdirLock(tmp_path):
            pass


class TestWithoutLocks:
    """File systems that know no locks: host and pid decide."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch):
        def refuse(*args):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "lockf", refuse)

    def leave(self, path, **owner):
        text = {"host": socket.gethostname(), "pid": 1, "since": "then"} | owner
        (path / "lock").write_text(json.dumps(text))

    def test_free(self, tmp_path):
        with workdir.WorkdirLock(tmp_path):
            pass

    @pytest.mark.parametrize("owner", [{"host": "elsewhere"}, {"pid": None}])
    def test_living_owner(self, tmp_path, owner):
        owner = {"pid": os.getppid()} if "pid" in owner else owner
        self.leave(tmp_path, **owner)
        with pytest.raises(workdir.WorkdirLocked) as caught:
            with workdir.WorkdirLock(tmp_path):
                pass
        assert f"delete {tmp_path / 'lock'}" in str(caught.value)

    def test_dead_owner(self, tmp_path):
        child = multiprocessing.get_context("spawn").Process(target=int)
        child.start()
        child.join()
        self.leave(tmp_path, pid=child.pid)
        with workdir.WorkdirLock(tmp_path):
            pass


CONFIG = {
    "steps": 10,
    "model": {"width": 64, "pattern": ("gla", "attention"), "extra": {}},
    "data": {"seed": 1, "path": None},
}


def changed(**values):
    config = json.loads(json.dumps(CONFIG))
    for name, value in values.items():
        part, _, field = name.partition("__")
        if field:
            config[part][field] = value
        else:
            config[part] = value
    return config


class TestConfig:
    def test_written_once_and_accepted_again(self, tmp_path):
        path = tmp_path / "new" / "config.json"
        assert binding.bind_config(path.parent, CONFIG) == []
        before = path.stat().st_mtime_ns
        time.sleep(0.01)
        assert binding.bind_config(path.parent, CONFIG) == []
        assert path.stat().st_mtime_ns == before
        assert json.loads(path.read_text()) == changed()

    def test_refused_with_both_values(self, tmp_path):
        binding.bind_config(tmp_path, CONFIG)
        raw = (tmp_path / "config.json").read_bytes()
        other = changed(
            model__width=128, data__seed=2, model__new=1, model__pattern=["gla"]
        )
        del other["data"]["path"]
        with pytest.raises(ValueError) as caught:
            binding.bind_config(tmp_path, other, override_flag="--accept=true")
        text = str(caught.value)
        assert "5 fields differ" in text
        assert "model.width: 64 in the workdir, 128 now" in text
        assert 'model.pattern: ["gla", "attention"] in the workdir' in text
        assert "model.new: absent in the workdir, 1 now" in text
        assert "data.path: null in the workdir, absent now" in text
        assert (
            "another workdir, or accept the change with --accept=true" in text
        )
        assert (tmp_path / "config.json").read_bytes() == raw

    def test_long_lists_are_cut(self, tmp_path):
        binding.bind_config(tmp_path, {str(i): i for i in range(20)})
        with pytest.raises(ValueError, match="and 12 more"):
            binding.bind_config(tmp_path, {str(i): -i - 1 for i in range(20)})

    def test_allowed_fields_may_change(self, tmp_path):
        binding.bind_config(tmp_path, CONFIG)
        new = changed(steps=20, data__seed=3)
        allowed = ("steps", "data")
        names = binding.bind_config(tmp_path, new, allowed=allowed)
        assert names == ["steps", "data.seed"]
        assert json.loads((tmp_path / "config.json").read_text()) == new
        old = json.loads((tmp_path / "config.1.json").read_text())
        assert old == changed()
        with pytest.raises(ValueError, match="model.width"):
            binding.bind_config(
                tmp_path, changed(steps=30, model__width=1), allowed=allowed
            )

    def test_override(self, tmp_path):
        binding.bind_config(tmp_path, CONFIG)
        new = changed(model__width=1)
        assert binding.bind_config(tmp_path, new, override=True) == [
            "model.width"
        ]
        assert binding.bind_config(tmp_path, new) == []

    @pytest.mark.parametrize("bound", [False, True])
    def test_allowed_name_that_is_no_field(self, tmp_path, bound):
        if bound:
            binding.bind_config(tmp_path, CONFIG)
        with pytest.raises(ValueError, match="'stepz', which is no field"):
            binding.bind_config(tmp_path, CONFIG, allowed=["stepz"])

    def test_value_json_cannot_hold(self, tmp_path):
        with pytest.raises(ValueError, match="data.seed must be JSON-able"):
            binding.bind_config(tmp_path, {"data": {"seed": {1}}})
        assert not (tmp_path / "config.json").exists()

    def test_damaged_file(self, tmp_path):
        (tmp_path / "config.json").write_text('{"steps": ')
        with pytest.raises(ValueError, match="config.json is no JSON"):
            binding.bind_config(tmp_path, CONFIG)
