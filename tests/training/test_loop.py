"""The loop in this process: policies, refusals, what it says."""

import json
import threading

import jax
import pytest

from seqjax import data
from seqjax import models
from seqjax.training import background
from seqjax.training import compile_cache
from seqjax.training import evaluation
from seqjax.training import flags
from seqjax.training import loop
from seqjax.training import metrics
from seqjax.training import progress
from seqjax.training import rows
from seqjax.training import step as step_lib
from tests.experiments import running
from tests.training import fakes
from tests.training import tiny


@pytest.fixture(name="config")
def _config(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.path = running.write_text(tmp_path / "text")
    config.steps, config.eval_every = 4, 2
    config.checkpoint.every = 1
    config.compile_cache = "off"
    config.model.pattern = ("simple_gla",)
    # The loop is tested here, not the model.
    monkeypatch.setattr(models, "LanguageModel", fakes.TwoMatrices)
    return config


@pytest.mark.slow
def test_stops_at_a_number_that_is_not_finite(config, tmp_path):
    config.optimizer.learning_rate = 2e38
    config.validate()
    said = []
    with pytest.raises(rows.NonFiniteError) as error:
        loop.run(config, tmp_path / "run", say=said.append)
    got = metrics.read_rows(tmp_path / "run" / "metrics.jsonl")
    steps = [row["step"] for row in got]
    bad = steps[-1] + 1
    assert str(error.value).startswith(f"step {bad}: ")
    saved = sorted(
        int(p.name)
        for p in (tmp_path / "run" / "checkpoints").iterdir()
        if p.name.isdecimal()
    )
    assert saved[-1] == bad - 1
    assert "compiling the train step ..." in said
    # The same start stops at the same place, with nothing lost.
    with pytest.raises(rows.NonFiniteError, match=f"step {bad}: "):
        loop.run(config, tmp_path / "run", say=said.append)
    again = metrics.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert again == got
    # Another policy is another run.
    config.nonfinite = "skip"
    with pytest.raises(flags.ConfigError, match=r'nonfinite: "stop" in the'):
        loop.run(config, tmp_path / "run", say=said.append)
    # Updates left out are counted; too many in succession are no training.
    with pytest.raises(rows.NonFiniteError, match="nothing more|validation"):
        loop.run(config, tmp_path / "skip", say=said.append)
    assert any("update skipped" in line for line in said)
    # Without jit the line that made the number is named.
    config.debug, config.nonfinite = True, "stop"
    with pytest.raises(rows.NonFiniteError, match=r"under debug: .*\.py:\d+"):
        loop.run(config, tmp_path / "debug", say=said.append)


@pytest.mark.slow
def test_debug_runs_without_jit(config, tmp_path):
    config.debug, config.steps = True, 2
    config.optimizer.warmup_steps = 1
    before = step_lib.traces["train_step"]
    said = []
    outcome = loop.run(config, tmp_path / "run", say=said.append)
    assert outcome.step == 2
    # Run as written, once a step.
    assert step_lib.traces["train_step"] == before + 2
    assert any("without jit" in line for line in said)


def test_data_that_cannot_be_used(config, tmp_path):
    for text, match in (
        (tmp_path / "none" / "*.txt", "none"),
        (tmp_path / "empty.txt", "empty"),
        (tmp_path / "short.txt", "too little text"),
    ):
        (tmp_path / "empty.txt").write_bytes(b"")
        (tmp_path / "short.txt").write_bytes(b"short")
        config.data.path = str(text)
        with pytest.raises(data.DataError, match=match):
            loop.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_batch_that_the_devices_do_not_divide(config, tmp_path):
    config.data.batch_size = 12
    config.validate()
    with pytest.raises(
        flags.ConfigError, match="12 .* 8 devices .* to 8 or 16"
    ):
        loop.run(config, tmp_path / "run")
    config.data.batch_size, config.mesh.fsdp = 24, 3
    with pytest.raises(flags.ConfigError, match="8 are there"):
        loop.run(config, tmp_path / "run")
    # Nothing of the refused starts binds the workdir.
    assert not (tmp_path / "run" / "config.json").exists()


def test_jobs():
    assert background.Job(lambda: 3).wait(lambda: False) == 3
    with pytest.raises(ZeroDivisionError):
        background.Job(lambda: 1 // 0).wait(lambda: False)

    release, told = threading.Event(), []
    job = background.Job(release.wait)
    with pytest.raises(background.PreemptedError):
        job.wait(lambda: len(told) > 1, lambda: told.append(1))
    assert job.running
    release.set()
    assert job.wait(lambda: True) is True


def test_evaluation_weighs_tokens():
    batches = [(3.0, 1.0), (1.0, 7.0), (0.0, 0.0)]

    def eval_step(params, batch):
        return {"nats": batch[0], "tokens": batch[1]}

    got = evaluation.evaluate(
        eval_step, None, batches, lambda b: b, lambda: False
    )
    assert got["validation_loss"] == 0.5
    assert got["validation_tokens"] == 8
    assert got["validation_bits_per_token"] == pytest.approx(0.7213475)
    with pytest.raises(flags.ConfigError, match="validation_fraction"):
        evaluation.evaluate(eval_step, None, [], lambda b: b, lambda: False)
    with pytest.raises(background.PreemptedError):
        evaluation.evaluate(eval_step, None, batches, lambda b: b, lambda: True)


def test_progress_lines(monkeypatch):
    clock, said = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "peak_flops", lambda kind: 1e4)
    shown = progress.Progress(
        steps=100,
        every=10,
        flops_per_token=8.0,
        say=said.append,
    )
    for step in range(1, 11):
        clock[0] += 2.0
        shown.waited(0.5)
        numbers = shown.step(step, 1.5, 50)
    assert said[:3] == [f"step {s:3d}/100  loss 1.5000" for s in (1, 2, 3)]
    assert said[3] == (
        "step  10/100  loss 1.5000  25 tokens/s  MFU 0.2 %  ETA 3m00s  "
        "data wait 25 %"
    )
    assert numbers["seconds_per_step"] == 2.0
    # Validation in between is no part of a step.
    shown.pause()
    clock[0] += 500.0
    shown.resume()
    for step in range(11, 21):
        clock[0] += 1.0
        # A batch of padding but for a tenth.
        numbers = shown.step(step, 1.5, 5)
    assert numbers["seconds_per_step"] == 1.0
    assert numbers["tokens_per_second"] == 5.0
    # Silence is broken, once in a while.
    count = len(said)
    for _ in range(45):
        clock[0] += 1.0
        shown.still("waiting for data", clock[0] - 30)
    assert said[count:] == ["still waiting for data, 30s so far"] * 2


def test_durations():
    assert [progress.duration(s) for s in (5, 61, 3660)] == [
        "5s",
        "1m01s",
        "1h01m",
    ]
    assert progress.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert progress.peak_flops("cpu") is None


def test_half_written_cache_entries_go(tmp_path, request):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    request.addfinalizer(
        lambda: jax.config.update("jax_compilation_cache_dir", before)
    )
    folder = compile_cache.enable("auto", tmp_path)
    jax.config.update("jax_compilation_cache_dir", None)
    (folder / "whole-cache").write_bytes(b"12345")
    compile_cache.seal(folder)
    (folder / "half-cache").write_bytes(b"1")
    assert json.loads((folder / "complete.json").read_text()) == {
        "whole-cache": 5
    }
    compile_cache.enable("auto", tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "complete.json",
        "whole-cache",
    ]
