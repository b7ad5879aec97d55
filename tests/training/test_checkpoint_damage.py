"""Damaged checkpoints and failing saves: named, set aside, nothing lost."""

import contextlib
import logging as python_logging
import random
import resource
import shutil
import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.training import checkpoints
from tests.training import _states


def flip(path, offset, bit):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1 << bit
    path.write_bytes(bytes(raw))


def files(step):
    found = sorted(p for p in step.rglob("*") if p.is_file())
    return [p for p in found if p.stat().st_size]


def restore_quietly(directory, step):
    """The verified state of a step, or None if it is found damaged."""
    target = _states.abstract(_states.make_state())
    with _states.open_store(directory, read_only=True) as store:
        try:
            return store.restore(target, step=step)
        except checkpoints.CheckpointDamaged as error:
            assert f"step {step}: " in str(error)
            return None


class TestDamage:
    def check(self, restored, must_find):
        """Damage is found, or did not reach anything that came back."""
        if restored is None:
            return
        assert not must_find
        assert _states.bits(restored.state) == _states.bits(
            _states.make_state(20)
        )
        assert restored.data_state == {"at": [20, 0.1]}
        assert restored.meta == {"note": "20"}

    def test_bit_flips_in_every_file(self, copy):
        rng = random.Random(0)
        for path in files(copy / "20"):
            size, found = path.stat().st_size, 0
            for _ in range(12):
                offset, bit = rng.randrange(size), rng.randrange(8)
                flip(path, offset, bit)
                restored = restore_quietly(copy, 20)
                found += restored is None
                self.check(restored, path.name == "metadata")
                flip(path, offset, bit)
            # Bits of a compressor's header may mean nothing; few are such.
            assert found >= 9 or size < 4096
        self.check(restore_quietly(copy, 20), False)

    def test_files_truncated_zeroed_or_gone(self, copy):
        for path in files(copy / "20"):
            raw = path.read_bytes()
            half = len(raw) // 2
            for damaged in (raw[:half], raw[:-1], b"", bytes(len(raw)), None):
                path.unlink()
                if damaged is not None:
                    path.write_bytes(damaged)
                must = path.name == "metadata" or (
                    len(raw) > 4096 and damaged != raw[:-1]
                )
                self.check(restore_quietly(copy, 20), must)
            path.write_bytes(raw)

    @pytest.mark.parametrize("part", ["state", "data", "meta", ""])
    def test_whole_parts_gone(self, copy, part, caplog):
        shutil.rmtree(copy / "20" / part)
        if not part:
            (copy / "20").mkdir()
        with _states.open_store(copy) as store:
            restored = store.restore(_states.abstract(_states.make_state()))
            assert restored.step == 10
            assert store.steps() == [10]
        assert (copy / "damaged-20").is_dir()
        assert f"step 20 is damaged: {part}" in caplog.text

    def test_named_set_aside_and_training_goes_on(self, copy, caplog):
        path = max(files(copy / "20"), key=lambda p: p.stat().st_size)
        flip(path, path.stat().st_size // 2, 3)
        raw = path.read_bytes()
        with _states.open_store(copy, keep=2) as store:
            restored = store.restore(_states.abstract(_states.make_state()))
            assert restored.step == 10
            assert _states.bits(restored.state) == _states.bits(
                _states.make_state(10)
            )
            store.save(20, _states.make_state(7), {}, {})
            store.save(30, _states.make_state(8), {}, {})
            store.wait()
            assert store.steps() == [20, 30]
            assert (
                store.restore(
                    _states.abstract(_states.make_state()), step=20
                ).meta
                == {}
            )
        assert "step 20 is damaged: state: bits changed in params/" in (
            caplog.text
        )
        kept = copy / "damaged-20" / path.relative_to(copy / "20")
        assert kept.read_bytes() == raw

    def test_a_second_damaged_copy_keeps_the_first(self, copy):
        for _ in range(2):
            (copy / "20" / "meta" / "metadata").write_text("{}")
            with _states.open_store(copy) as store:
                assert (
                    store.restore(_states.abstract(_states.make_state())).step
                    == 10
                )
                store.save(20, _states.make_state(20), {}, {})
        assert (copy / "damaged-20").is_dir()
        assert (copy / "damaged-20-2").is_dir()

    def test_read_only_changes_nothing(self, copy):
        (copy / "20" / "meta" / "metadata").write_text("{}")
        with _states.open_store(copy, read_only=True) as store:
            assert (
                store.restore(_states.abstract(_states.make_state())).step == 10
            )
            with pytest.raises(checkpoints.CheckpointDamaged, match="step 20"):
                store.read_meta(20)
        assert sorted(p.name for p in copy.iterdir()) == ["10", "20"]

    def test_no_intact_step(self, copy):
        for step in ("10", "20"):
            (copy / step / "data" / "metadata").unlink()
        with _states.open_store(copy) as store:
            with pytest.raises(checkpoints.CheckpointDamaged) as caught:
                store.restore(_states.abstract(_states.make_state()))
            assert store.steps() == [10, 20]
        text = str(caught.value)
        assert "step 10: data: " in text and "step 20: data: " in text
        assert "Nothing was changed" in text

    def test_a_step_under_another_name(self, copy):
        (copy / "10").rename(copy / "40")
        with _states.open_store(copy) as store:
            assert (
                store.restore(_states.abstract(_states.make_state())).step == 20
            )
        assert (copy / "damaged-40").is_dir()


@contextlib.contextmanager
def file_size_limit(size):
    """Stands for a full disk: no file may grow past size bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFailingSaves:
    def big(self, seed):
        x = np.random.default_rng(seed).normal(size=(1024, 1024))
        return {"x": jnp.asarray(x, jnp.float32)}

    @pytest.mark.parametrize("how", ["check", "save", "wait", "close"])
    def test_full_disk(self, tmp_path, how, capfd):
        store = checkpoints.CheckpointStore(tmp_path, keep=2)
        store.save(1, self.big(1), {}, {})
        store.wait()
        with file_size_limit(2**20):
            with pytest.raises(checkpoints.CheckpointError) as caught:
                store.save(2, self.big(2), {}, {})
                if how == "check":
                    for _ in range(200):
                        store.check()
                        time.sleep(0.05)
                elif how == "save":
                    store.save(3, self.big(3), {}, {})
                elif how == "wait":
                    store.wait()
                else:
                    store.close()
            text = str(caught.value)
            assert "saving checkpoint step 2" in text
            assert "Steps on disk: [1]" in text and "free space" in text
            store.close()
            store.close()
        assert "Traceback" not in capfd.readouterr().err
        target = {"x": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
        with _states.open_store(tmp_path) as again:
            restored = again.restore(target)
            assert restored.step == 1
            assert _states.bits(restored.state) == _states.bits(self.big(1))
            again.save(2, self.big(2), {}, {})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]

    def test_an_error_in_the_loop_is_not_hidden(self, tmp_path):
        with pytest.raises(KeyError):
            with _states.open_store(tmp_path) as store, file_size_limit(2**20):
                store.save(1, self.big(1), {}, {})
                raise KeyError

    def test_no_directory_to_write_to(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(checkpoints.CheckpointError, match="cannot open"):
            checkpoints.CheckpointStore(tmp_path / "file" / "x", keep=1)


def test_no_walls_of_log_lines(tmp_path):
    logging.set_verbosity(logging.INFO)
    lines = []

    class Collect(python_logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Collect()
    logging.get_absl_logger().addHandler(handler)
    try:
        with _states.open_store(tmp_path) as store:
            store.save(1, _states.make_state(), {}, {})
            store.wait()
            store.restore(_states.abstract(_states.make_state()))
    finally:
        logging.get_absl_logger().removeHandler(handler)
        logging.set_verbosity(logging.WARNING)
    assert len(lines) <= 2, lines
