"""SIGKILL at any moment: the same metrics and state as without.

A small loop stands for training; it makes the calls in the order that the
promise needs: rows, flush, save.
"""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import pytest

from seqjax.training import checkpoints
from seqjax.training import metrics
from tests import xla_flags

STEPS = 40

LOOP = """
import json, sys
import jax, jax.numpy as jnp
from seqjax.training import binding, checkpoints, metrics, workdir

path, steps = sys.argv[1], int(sys.argv[2])

@jax.jit
def init():
    x = jax.random.normal(jax.random.key(0), (256, 64))
    return {"x": x, "count": jnp.int32(0)}

@jax.jit
def update(state):
    key = jax.random.fold_in(jax.random.key(1), state["count"])
    x = jnp.tanh(state["x"] * 1.1 + jax.random.normal(key, state["x"].shape))
    return {"x": x, "count": state["count"] + 1}, jnp.mean(x * x)

with workdir.WorkdirLock(path):
    binding.bind_config(path, {"steps": steps})
    store = checkpoints.CheckpointStore(path + "/checkpoints", keep=2)
    found = store.restore(jax.eval_shape(init))
    state, first = (found.state, found.step) if found else (init(), 0)
    if found:
        assert found.data_state == {"next": found.step}
    print("from", first, flush=True)
    resume_step = found.step if found else None
    with metrics.MetricsWriter(
        path, resume_step=resume_step, tensorboard=False
    ) as writer:
        for step in range(first + 1, steps + 1):
            state, loss = update(state)
            writer.write(step, loss=loss)
            if step % 2 == 0 or step == steps:
                writer.write(step, validation_loss=loss * 2)
                writer.flush()
                store.save(step, state, {"next": step}, {})
    store.close()
print("done", flush=True)
"""


def start(path):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LOOP, str(path), str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )


def final(path):
    manifest = path / "checkpoints" / str(STEPS) / "meta" / "metadata"
    leaves = json.loads(manifest.read_text())["state"]
    return leaves, (path / "metrics.jsonl").read_bytes()


def wait_for_step(path, step, process):
    file = path / "metrics.jsonl"
    while process.poll() is None:
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path):
    whole = start(tmp_path / "whole")
    lines = whole.communicate(timeout=120)[0].split()
    assert lines == ["from", "0", "done"]
    rng = random.Random(0)
    path, firsts = tmp_path / "killed", []
    for _ in range(3):
        process = start(path)
        firsts.append(int(process.stdout.readline().split()[1]))
        wait_for_step(path, firsts[-1] + rng.randint(4, 12), process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
    process = start(path)
    out = process.communicate(timeout=120)[0].split()
    assert out[-1] == "done" and process.returncode == 0
    firsts.append(int(out[1]))
    assert firsts == sorted(firsts) and firsts[-1] > 0
    assert final(path) == final(tmp_path / "whole")
    rows = metrics.read_rows(path / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, STEPS + 1))
    names = {p.name for p in (path / "checkpoints").iterdir()}
    assert names == {str(STEPS - 2), str(STEPS)}


JOB = """
import os, signal, sys
import jax
path, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:" + port, 2, index)
import jax.numpy as jnp
import numpy as np
from seqjax.training import checkpoints, preemption

mesh = jax.make_mesh((4,), ("data",),
                     axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
values = np.arange(64, dtype=np.float32).reshape(8, 8)
x = jax.make_array_from_callback((8, 8), sharding, lambda i: values[i])
target = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}
with preemption.PreemptionFlag() as flag:
    store = checkpoints.CheckpointStore(path, keep=2)
    for step in (1, 2):
        data = {"process": index, "pad": "x" * index * 9}
        store.save(step, {"x": x + step}, data, {"a": 1})
    store.wait()
    if index == 0:
        os.truncate(path + "/2/meta/metadata", 9)
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("damage")
    found = store.restore(target)
    assert found.step == 1, found
    assert found.data_state == {"process": index, "pad": "x" * index * 9}
    for shard in found.state["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, values[shard.index] + 1)
    assert not flag.agreed()
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    assert not flag.agreed()  # the answer to the question before
    assert flag.agreed()
    store.save(2, {"x": x + 2}, {}, {"a": 2})
    store.close()
print("ok")
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = xla_flags.flags(devices=2)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), str(port), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags},
            cwd=pathlib.Path(__file__).parents[2],
        )
        for index in range(2)
    ]
    try:
        for job in jobs:
            out, err = job.communicate(timeout=120)
            assert out.endswith("ok\n") and job.returncode == 0, err
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "damaged-2"]
    with checkpoints.CheckpointStore(tmp_path, keep=1, read_only=True) as store:
        assert store.read_meta(2) == {"a": 2}
