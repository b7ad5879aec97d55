"""A workdir that has lost a part: refused or mended, and nothing is lost."""

import json
import shutil

import pytest

from seqjax import data
from seqjax import models
from seqjax.training import background
from seqjax.training import binding
from seqjax.training import checkpoints
from seqjax.training import evaluation
from seqjax.training import flags
from seqjax.training import loop
from seqjax.training import metrics
from seqjax.training import rows
from tests.experiments import running
from tests.training import fakes
from tests.training import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(name="config")
def _config(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.data.path = running.write_text(tmp_path / "text")
    config.steps, config.eval_every = 6, 3
    config.checkpoint.every = 2
    config.compile_cache = "off"
    # The workdir is tested here, not the model.
    monkeypatch.setattr(models, "LanguageModel", fakes.TwoMatrices)
    return config


def contents(folder):
    """Every file of a workdir but the lock."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def quiet(line):
    del line


def test_what_may_be_lost_of_a_run(config, tmp_path):
    whole = tmp_path / "whole"
    first = loop.run(config, whole, say=quiet)
    with checkpoints.CheckpointStore(
        whole / "checkpoints", keep=1, read_only=True
    ) as store:
        meta = store.read_meta(6)
    assert meta["config_hash"] and meta["config"]["steps"] == 6
    assert meta["dtype"] == "float32"
    versions = json.loads((whole / "versions.json").read_text())
    assert versions["dtype"] == "float32"
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)

    def broken(damage):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        damage(tmp_path / "run")
        return tmp_path / "run"

    def refused(damage, error, match):
        folder = broken(damage)
        before = contents(folder)
        with pytest.raises(error, match=match):
            loop.run(config, folder, say=quiet)
        after = contents(folder)
        # Versions are those of the newest start, also of a refused one, and
        # a lost config.json comes back where the checkpoints agree.
        for name in ("versions.json", "config.json"):
            for files in (before, after):
                files.pop(next((p for p in files if p.name == name), None), 0)
        assert after == before

    def without(*gone):
        kept = [x for i, x in enumerate(lines, 1) if i not in gone]
        return lambda run: (run / "metrics.jsonl").write_bytes(b"".join(kept))

    for gone, said in (
        ((2,), "lacks rows of steps up to 6: 2, "),
        ((1, 3, 4), "up to 6: 1, 3-4, "),
        ((5, 6), "up to 6: 5-6, "),
        (range(1, 7), "up to 6: 1-6, "),
    ):
        refused(without(*gone), metrics.MetricsError, said)
    for damage in (
        lambda run: shutil.rmtree(run / "checkpoints"),
        lambda run: [shutil.rmtree(p) for p in run.glob("checkpoints/*")],
    ):
        refused(damage, metrics.MetricsError, "rows up to step 6, .* are gone")

    # Without config.json the checkpoints still know whose they are.
    config.optimizer.learning_rate *= 2
    lost = broken(lambda run: (run / "config.json").unlink())
    with pytest.raises(
        flags.ConfigError, match="step 4 in .*\n.*learning_rate"
    ):
        loop.run(config, lost, say=quiet)
    assert not (lost / "config.json").exists()
    config.optimizer.learning_rate /= 2
    again = loop.run(config, lost, say=quiet)
    assert again.already_done and again.validation == first.validation
    assert contents(lost)[(lost / "config.json").relative_to(lost)]


def test_a_kill_before_the_first_checkpoint_begins_again(config, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    rows_of_two = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n'
    (folder / "metrics.jsonl").write_text(rows_of_two)
    assert loop.run(config, folder, say=quiet).step == 6
    steps = [r["step"] for r in metrics.read_rows(folder / "metrics.jsonl")]
    assert steps == list(range(1, 7))


def test_stopped_inside_the_last_validation(config, tmp_path, monkeypatch):
    loop.run(config, tmp_path / "whole", say=quiet)
    folder = tmp_path / "run"
    real, calls = evaluation.evaluate, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise background.PreemptedError
        return real(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", stopped)
    with pytest.raises(background.PreemptedError):
        loop.run(config, folder, say=quiet)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5
    # The next start validates; the ones after it have nothing left to do.
    done = loop.run(config, folder, say=quiet)
    assert not done.already_done and len(calls) == 3
    again = loop.run(config, folder, say=quiet)
    assert again.already_done and len(calls) == 3
    assert again.validation == done.validation
    rows_file = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == rows_file


def test_data_that_goes_away_in_the_middle(config, tmp_path, monkeypatch):
    loop.run(config, tmp_path / "whole", say=quiet)
    real, said = data.TrainIterator.__next__, []
    for error, raised in (
        (data.WorkerKilled("a worker was killed"), background.PreemptedError),
        (data.DataError("a.txt: cannot be read"), data.DataError),
    ):
        folder, calls = tmp_path / type(error).__name__, []

        def failing(self, calls=calls, error=error):
            calls.append(1)
            if len(calls) == 4:
                raise error
            return real(self)

        monkeypatch.setattr(data.TrainIterator, "__next__", failing)
        with pytest.raises(raised, match=str(error)):
            loop.run(config, folder, say=said.append)
        assert "saved after step 3" in said[-1]
        monkeypatch.setattr(data.TrainIterator, "__next__", real)
        loop.run(config, folder, say=said.append)
        assert "resuming after step 3: " in "".join(said)
        rows_file = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        assert (folder / "metrics.jsonl").read_bytes() == rows_file


def test_a_validation_that_is_not_finite(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation,
        "evaluate",
        lambda *_: {"validation_loss": float("nan")},
    )
    config.nonfinite = "skip"
    with pytest.raises(rows.NonFiniteError, match=r"of steps \[2\], hold fin"):
        loop.run(config, tmp_path / "run", say=quiet)


def test_hash_of_a_configuration():
    config = {"a": {"b": 1, "c": [1, 2]}, "where": {"x": 1}}
    meta = binding.describe(config, ["where"])
    other = {"a": {"c": [1, 2], "b": 1}, "where": {"x": 2}}
    binding.check_described(meta, other, ["where"], "it")
    other["a"]["b"] = 2
    for told, line in (
        (meta, "  a.b: 1 in the workdir, 2 now"),
        ({}, "  a.b: absent in the workdir, 2 now"),
    ):
        with pytest.raises(ValueError, match="it belongs to") as error:
            binding.check_described(told, other, ["where"], "it")
        assert line in str(error.value)


def test_a_timing_file_is_no_truth(tmp_path):
    path, said = tmp_path / "timing.jsonl", []
    assert metrics.read_timing(path, said.append) == []
    path.write_bytes(b'{"step": 1, "a": 2}\nxx\n[[\n{"step": 3}\n{"st')
    got = metrics.read_timing(path, said.append)
    assert [row["step"] for row in got] == [1, 3]
    assert "is gone" in said[0] and "left out: 2, 3" in said[1]
