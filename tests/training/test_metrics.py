"""Metric files: the same bytes after any kill, whole lines only."""

import json
import math
import pathlib
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.training import metrics


def write_steps(writer, first, last):
    for step in range(first, last + 1):
        writer.write(step, loss=np.float32(1) / (step + 1), tokens=step * 64)
        if step % 4 == 0:
            writer.write(step, validation_loss=jnp.bfloat16(step + 0.1))


@pytest.fixture
def whole(tmp_path):
    """The bytes of an undisturbed run of 10 steps."""
    with open_writer(tmp_path / "whole", None) as writer:
        write_steps(writer, 1, 10)
    return (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def open_writer(workdir, resume_step):
    return metrics.MetricsWriter(
        workdir, resume_step=resume_step, tensorboard=False
    )


class TestRows:
    def test_exact_text(self, tmp_path):
        with open_writer(tmp_path, None) as writer:
            writer.write(1, loss=np.float32(0.1), z=2, a=True)
            writer.write(2, loss=jnp.float32(1e-30), n=np.int64(3))
            writer.write(2, bad=math.nan, up=np.inf, down=jnp.float32(-np.inf))
        assert (tmp_path / "metrics.jsonl").read_text() == (
            '{"step": 1, "loss": 0.10000000149011612, "z": 2, "a": true}\n'
            '{"step": 2, "loss": 1.0000000031710769e-30, "n": 3}\n'
            '{"step": 2, "bad": "nan", "up": "inf", "down": "-inf"}\n'
        )

    def test_read_back(self, tmp_path):
        with open_writer(tmp_path, None) as writer:
            writer.write(1, loss=1 / 3, bad=math.nan, up=math.inf)
            writer.timing(1, host="inf9", seconds=0.5)
        (row,) = metrics.read_rows(tmp_path / "metrics.jsonl")
        assert row["loss"] == 1 / 3 and row["up"] == math.inf
        assert math.isnan(row["bad"])
        (row,) = metrics.read_rows(tmp_path / "timing.jsonl")
        assert row == {"step": 1, "host": "inf9", "seconds": 0.5}

    def test_rows_are_on_disk_at_once(self, tmp_path):
        writer = open_writer(tmp_path, None)
        writer.write(1, loss=1.0)
        assert len(metrics.read_rows(tmp_path / "metrics.jsonl")) == 1
        writer.flush()
        writer.close()
        writer.close()

    @pytest.mark.parametrize(
        "value", [np.ones(1), "text", None, 1j, [1.0], jnp.ones((2, 2))]
    )
    def test_no_number(self, tmp_path, value):
        with open_writer(tmp_path, None) as writer:
            with pytest.raises(ValueError, match="loss must be one number"):
                writer.write(1, loss=value)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""

    def test_steps_go_forward(self, tmp_path):
        with open_writer(tmp_path, None) as writer:
            writer.write(0, loss=1.0)
            writer.write(3, loss=1.0)
            writer.write(3, other=1.0)
            with pytest.raises(ValueError, match="got 2 after 3"):
                writer.write(2, loss=1.0)
        with open_writer(tmp_path, 3) as writer:
            with pytest.raises(ValueError, match="before its checkpoint"):
                writer.write(3, late=1.0)


class TestResume:
    @pytest.mark.parametrize("killed_after", [0, 3, 4, 7, 10])
    @pytest.mark.parametrize("torn", [b"", b'{"step": 11, "lo', b"{", b"\x00"])
    def test_same_bytes_from_any_checkpoint(
        self, tmp_path, whole, killed_after, torn
    ):
        for k in [None, *range(killed_after + 1)]:
            workdir = tmp_path / f"run{k}"
            writer = open_writer(workdir, None)
            write_steps(writer, 1, killed_after)
            with open(workdir / "metrics.jsonl", "ab") as file:
                file.write(torn)
            with open_writer(workdir, k) as writer:
                write_steps(writer, (k or 0) + 1, 10)
            assert (workdir / "metrics.jsonl").read_bytes() == whole

    def test_cut_at_every_byte(self, tmp_path, whole):
        # Rows up to the checkpoint are synced before it; past them a kill
        # may leave any prefix.
        start = whole.index(b'{"step": 5')
        for end in range(start, len(whole), 29):
            (tmp_path / "metrics.jsonl").write_bytes(whole[:end])
            with open_writer(tmp_path, 4) as writer:
                write_steps(writer, 5, 10)
            assert (tmp_path / "metrics.jsonl").read_bytes() == whole

    def test_finished_run_is_left_alone(self, tmp_path, whole):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(whole)
        before = path.stat()
        open_writer(tmp_path, 10).close()
        assert path.read_bytes() == whole
        assert path.stat().st_ino == before.st_ino
        assert path.stat().st_mtime_ns == before.st_mtime_ns

    def test_damage_before_the_end_is_named(self, tmp_path, whole):
        lines = whole.split(b"\n")
        for bad in (b'{"loss": 1.0}', b"\x00\xff", b"[1]", b""):
            lines[2] = bad
            (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
            with pytest.raises(
                metrics.MetricsError, match=r"metrics.jsonl, line 3 is"
            ):
                open_writer(tmp_path, 8)
            assert (
                (tmp_path / "metrics.jsonl").read_bytes().startswith(lines[0])
            )

    def test_timing_only_grows(self, tmp_path):
        with open_writer(tmp_path, None) as writer:
            writer.timing(5, seconds=1)
        with open(tmp_path / "timing.jsonl", "ab") as file:
            file.write(b'{"step": 6, "sec')
        with open_writer(tmp_path, 2) as writer:
            writer.timing(3, event="restart")
        rows = metrics.read_rows(tmp_path / "timing.jsonl")
        assert rows == [
            {"step": 5, "seconds": 1},
            {"step": 3, "event": "restart"},
        ]


def test_full_disk_leaves_whole_lines(tmp_path):
    with open_writer(tmp_path, None) as writer:
        writer.write(1, loss=1.0)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
        try:
            with pytest.raises(metrics.MetricsError) as caught:
                writer.write(2, loss=1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        path = tmp_path / "metrics.jsonl"
        assert f"cannot write a row to {path}: File too" in str(caught.value)
        writer.write(2, loss=1.0)
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]


def read_events(directory):
    """(step, tag, value) and session starts, in order of the files."""
    from tensorboardX import proto
    from tensorboardX import record_writer

    del record_writer
    found = []
    for path in sorted(pathlib.Path(directory).iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            size = int.from_bytes(raw[at : at + 8], "little")
            event = proto.event_pb2.Event.FromString(
                raw[at + 12 : at + 12 + size]
            )
            at += 12 + size + 4
            if event.HasField("session_log"):
                found.append((event.step, "start", None))
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value))
    return found


def test_tensorboard_events_with_purge_step(tmp_path):
    with metrics.MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write(1, loss=0.5)
        writer.write(2, loss=0.25)
        writer.flush()
    first = read_events(tmp_path / "tensorboard")
    assert first == [(0, "start", None), (1, "loss", 0.5), (2, "loss", 0.25)]
    with metrics.MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, loss=0.25)
    assert (2, "start", None) in read_events(tmp_path / "tensorboard")


def test_no_events_before_the_first_row(tmp_path):
    code = (
        "import sys; from seqjax.training import metrics\n"
        "w = metrics.MetricsWriter(sys.argv[1], resume_step=None)\n"
        "w.timing(0, seconds=1.0)\n"
        "assert 'tensorboardX' not in sys.modules\n"
        "w.write(1, loss=1.0); w.close()\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 1, "loss": 1.0}
