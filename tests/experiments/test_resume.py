"""Kill or stop the real training process: nothing must show afterwards."""

import os
import random
import shutil
import signal

import jax
import numpy as np
import pytest

from seqjax.parallel import sharding
from seqjax.training import checkpoints
from seqjax.training import metrics
from seqjax.training import preemption
from seqjax.training import programs
from tests.experiments import running
from tests.training import tiny

pytestmark = pytest.mark.slow

STEPS = 40
OPTIONS = (
    "--config.mesh.fsdp=2",
    "--config.mesh.seq=2",
    f"--config.steps={STEPS}",
    "--config.eval_every=7",
    "--config.accumulation=1",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    text = running.write_text(folder / "text")
    return running.Command(text, folder / "cache", *OPTIONS)


@pytest.fixture(scope="module")
def clean(command, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("clean") / "run"
    code, output = command.run(workdir)
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def stopped(command, clean, tmp_path_factory):
    """A run that had SIGTERM, to its whole group, after some steps."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = command.start(workdir)
    running.wait_until(process, lambda: running.rows_in(workdir) >= 8)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(running.SECONDS) == preemption.EXIT_PREEMPTED
    return workdir


def _parameters(workdir):
    config = tiny.get_config()
    config.mesh.fsdp = 2
    built = programs.Programs(config, sharding.ShardingRules())
    store = checkpoints.CheckpointStore(
        workdir / "checkpoints", keep=2, read_only=True
    )
    restored = store.restore(built.abstract_state)
    assert restored.step == STEPS
    return restored.state


def _assert_same(workdir, clean):
    rows = (workdir / "metrics.jsonl").read_bytes()
    assert rows == (clean / "metrics.jsonl").read_bytes()
    jax.tree.map(
        np.testing.assert_array_equal, _parameters(workdir), _parameters(clean)
    )


def _traces(workdir):
    rows = metrics.read_rows(workdir / "timing.jsonl")
    return [
        {k: v for k, v in row.items() if k.startswith("traces")}
        for row in rows
        if row.get("event") == "end"
    ]


def test_undisturbed(clean):
    rows = metrics.read_rows(clean / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    validated = [r["step"] for r in rows if "validation_loss" in r]
    assert validated == [7, 14, 21, 28, 35, 40]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.0
    assert _traces(clean) == [{"traces_train_step": 1, "traces_eval_step": 1}]
    last = (clean.parent / "run.log").read_text().splitlines()[-1]
    assert last.startswith("validation bits/byte: ")
    page = (clean / "report.html").read_text()
    for part in ("<svg", "polyline", "learning_rate", "trigram", "jaxlib"):
        assert part in page
    assert "<script" not in page and "http" not in page


def test_killed_at_random_moments(command, clean, tmp_path):
    workdir = tmp_path / "run"
    rng = random.Random(0)
    for attempt in range(4):
        process = command.start(workdir)
        # Once in the start-up, then behind some rows of this attempt: the
        # delay reaches into steps, saves, renames and validations.
        if attempt == 1:
            delay = rng.uniform(0.5, 3.0)
        else:
            goal = rng.randint(1, 9)
            first = running.rows_in(workdir)
            seen = [first]

            def moved(seen=seen, goal=goal):
                count = running.rows_in(workdir)
                # Rows behind the restored step are dropped at first.
                seen.append(count)
                return count >= min(seen) + goal and count > min(seen)

            running.wait_until(process, moved)
            delay = rng.uniform(0.0, 0.3)
        try:
            process.wait(delay)
        except Exception:  # still running, as it should be
            pass
        running.kill(process)
        if running.rows_in(workdir) == STEPS:
            break
    code, output = command.run(workdir)
    assert code == 0, output
    _assert_same(workdir, clean)


def test_stopped_and_resumed(command, clean, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    before = running.rows_in(workdir)
    assert 8 <= before < STEPS
    code, output = command.run(workdir)
    assert code == 0, output
    assert f"resuming after step {before}" in output
    _assert_same(workdir, clean)
    # Each process traced each function once.
    once = {"traces_train_step": 1, "traces_eval_step": 1}
    assert _traces(workdir)[-1] == once
    assert all(n <= 1 for counts in _traces(workdir) for n in counts.values())
    # A finished run says so and leaves everything as it is.
    kept = list(workdir.glob("checkpoints/*"))
    files = {path: path.stat().st_mtime for path in kept}
    code, again = command.run(workdir)
    assert code == 0
    assert "this run is finished" in again
    assert "compiling" not in again
    assert again.splitlines()[-1] == output.splitlines()[-1]
    assert files == {path: path.stat().st_mtime for path in kept}
    assert sorted(kept) == sorted(workdir.glob("checkpoints/*"))
    _assert_same(workdir, clean)


@pytest.mark.parametrize(
    ("devices", "fsdp", "seq"),
    [pytest.param(4, 2, 1, marks=pytest.mark.full), (4, 1, 4), (1, 1, 1)],
)
def test_restored_on_other_meshes(
    command, clean, stopped, tmp_path, devices, fsdp, seq
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    code, output = command.run(
        workdir,
        f"--config.mesh.fsdp={fsdp}",
        f"--config.mesh.seq={seq}",
        devices=devices,
    )
    assert code == 0, output
    assert f"{devices} x cpu" in output
    got = metrics.read_rows(workdir / "metrics.jsonl")
    expected = metrics.read_rows(clean / "metrics.jsonl")
    restored = next(
        i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b
    )
    for i, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        assert ours["tokens"] == theirs["tokens"]
        # The tiny model fits its text, and the norm of a gradient that nearly
        # cancels magnifies rounding: it is compared for the first ten steps.
        late = {"grad_norm"} if i >= restored + 10 else set()
        for name in ours.keys() - late:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6)


def test_stopped_while_compiling(command, tmp_path):
    workdir = tmp_path / "run"
    log = tmp_path / "run.log"
    cold = running.Command(command.text, None, *OPTIONS)
    process = cold.start(workdir)
    running.wait_until(
        process, lambda: "compiling the train step" in log.read_text()
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(running.SECONDS) == preemption.EXIT_PREEMPTED
    output = log.read_text()
    assert "saved after step 0" in output
    assert "compiled the train step" not in output
    assert (workdir / "checkpoints" / "0").is_dir()


def test_damaged_newest_checkpoint(command, clean, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    newest = max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()),
        key=lambda p: int(p.name),
    )
    # Which files hold the arrays, and which are left over, Orbax knows.
    for path in newest.glob("state/**/d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(bytes(content))
    code, output = command.run(workdir)
    assert code == 0, output
    assert f"checkpoint step {newest.name} is damaged" in output
    assert (workdir / "checkpoints" / f"damaged-{newest.name}").is_dir()
    _assert_same(workdir, clean)
